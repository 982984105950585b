"""A GGUF export is the checkpoint, tensor by tensor, and what llama.cpp reads of it is as trained.

The judge of the file is the package ``gguf``; what its metadata and divisors mean is computed here
as llama.cpp's ``rope_yarn`` does. ``tools/compare_gguf.py`` has llama.cpp's own converter and
llama.cpp itself beside it.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from tokenizers import Tokenizer

from megatron_ultralong.checkpoint.convert import model_writer
from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint, verify
from megatron_ultralong.checkpoint.disk.metadata import load_metadata, seal_small_files, unseal
from megatron_ultralong.checkpoint.formats.gguf_file import readers, rope_values
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.weight_map import model_weights
from megatron_ultralong.config.convert import ExportConfig, ImportConfig, VerifyConfig
from megatron_ultralong.model import yarn
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError
from tests.checkpoint.llama import save_llama
from tests.checkpoint.test_rope_blocks import SCALINGS
from tests.warm.programs import ROOT

TOKENIZER = ROOT / "examples" / "demo" / "base"
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
"""GGML's numbers."""


def checkpoint(folder: Path, **shape: Any) -> Path:
    """A small model with the tokenizer of the demo, which has four tokens fewer than the model."""
    save_llama(folder / "hf", tokenizer=False, vocab_size=4100, **shape)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / "hf")
    (folder / "hf" / "LICENSE.txt").write_text("as you like")
    import_checkpoint(ImportConfig(folder / "hf", folder / "megatron"))
    return folder / "megatron"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    return checkpoint(folder, num_hidden_layers=2, dtype=torch.bfloat16)


def values(reader: GGUFReader) -> dict[str, Any]:
    return {
        key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")
    }


def pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of every head: 0, D/2, 1, D/2 + 1, ..."""
    rows = weight.shape[0] // heads
    order = [i // 2 + (i % 2) * (rows // 2) for i in range(rows)]
    return torch.cat([weight[head * rows : (head + 1) * rows][order] for head in range(heads)])


LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def expected(folder: Path, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Tensors of a GGUF file by its names, out of the checkpoint, as llama.cpp wants them."""
    model = MegatronCheckpoint(folder)
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    found = {}
    for weight in model_weights(model.model):
        for name, tensor in zip(weight.names, model.read(weight), strict=True):
            plain = name.removesuffix(".weight")
            if plain in outside:
                there = outside[plain]
            else:
                _, _, layer, part = plain.split(".", 3)
                there = f"blk.{layer}.{LAYER[part]}"
            if there.endswith("attn_q"):
                tensor = pairs(tensor, model.model.num_attention_heads)
            if there.endswith("attn_k"):
                tensor = pairs(tensor, model.model.num_query_groups)
            wanted = torch.float32 if tensor.dim() == 1 else dtype or tensor.dtype
            found[f"{there}.weight"] = tensor.to(wanted)
    return found


@pytest.mark.parametrize(
    ("flag", "dtype", "shape"),
    [
        ("keep", torch.bfloat16, {"dtype": torch.bfloat16}),
        ("keep", torch.float32, {"tied": True}),
        ("fp16", torch.float16, {"dtype": torch.bfloat16, "num_key_value_heads": 6}),
        ("bf16", torch.bfloat16, {"num_key_value_heads": 1}),
    ],
)
def test_every_tensor_is_the_checkpoints(
    tmp_path: Path, flag: Any, dtype: torch.dtype, shape: dict[str, Any]
) -> None:
    folder = checkpoint(tmp_path, num_hidden_layers=2, **shape)
    export_checkpoint(ExportConfig(folder, tmp_path / "out", format="gguf", dtype=flag))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "LICENSE.txt", "model.gguf",
    ]  # fmt: skip
    reader = GGUFReader(tmp_path / "out" / "model.gguf")
    wanted = expected(folder, None if flag == "keep" else dtype)
    assert {tensor.name for tensor in reader.tensors} == set(wanted)
    for tensor in reader.tensors:
        there = wanted[tensor.name]
        assert tensor.tensor_type == TYPES[there.dtype], tensor.name
        assert tuple(reversed(tensor.shape.tolist())) == tuple(there.shape), tensor.name
        bits = there.contiguous().view(torch.uint8).numpy().tobytes()
        assert tensor.data.tobytes() == bits, tensor.name
    assert values(reader)["general.file_type"] == {0: 0, 1: 1, 30: 32}[TYPES[dtype]]


def test_the_metadata_is_the_models(source: Path, tmp_path: Path) -> None:
    export_checkpoint(ExportConfig(source, tmp_path / "out", format="gguf"))
    found = values(GGUFReader(tmp_path / "out" / "model.gguf"))
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    tokens, types = found.pop("tokenizer.ggml.tokens"), found.pop("tokenizer.ggml.token_type")
    assert tokens[:4096] == [tokenizer.id_to_token(number) for number in range(4096)]
    assert tokens[4096:] == [f"[PAD{number}]" for number in range(4096, 4100)]
    assert types == [1] * 4094 + [3] * 2 + [5] * 4
    merges = json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]["merges"]
    assert found.pop("tokenizer.ggml.merges") == [" ".join(pair) for pair in merges]
    assert found == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "hf",
        "general.size_label": found["general.size_label"],
        "general.file_type": 32,
        "general.quantization_version": 2,
        "llama.block_count": 2,
        "llama.context_length": 256,
        "llama.embedding_length": 72,
        "llama.feed_forward_length": 100,
        "llama.attention.head_count": 6,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "llama.vocab_size": 4100,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.bos_token_id": 4094,
        "tokenizer.ggml.eos_token_id": 4095,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }


MODEL = ModelConfig(
    num_layers=1, hidden_size=128, ffn_hidden_size=128, num_attention_heads=1, num_query_groups=1,
    kv_channels=128, vocab_size=128, norm_epsilon=1e-5, rotary_base=500000.0,
    max_position_embeddings=4_194_304, untie_embeddings_and_output_weights=True,
)  # fmt: skip
MORE: dict[str, yarn.RopeScaling] = {
    **SCALINGS,
    "usual yarn": yarn.YarnConfig(
        16.0, 8192, 32.0, 1.0, "dimensions", yarn.yarn_attention_factor(16.0)
    ),
    "usual yarn, no temperature": yarn.YarnConfig(16.0, 8192, 32.0, 1.0, "dimensions", 1.0),
    "not rounded": yarn.YarnConfig(16.0, 8192, 32.0, 1.0, "dimensions", 1.0, truncate=False),
    "rotations with a temperature": yarn.YarnConfig(128.0, attention_factor=1.4852),
}


def llama_cpp(found: dict[str, Any], divisors: np.ndarray | None) -> tuple[np.ndarray, float]:
    """Frequencies and temperature that llama.cpp has without any flag, in float64."""
    base, kind = found["llama.rope.freq_base"], found.get("llama.rope.scaling.type", "linear")
    frequencies = base ** (-np.arange(0, 128, 2) / 128)
    if divisors is not None:
        frequencies = frequencies / divisors
    scale = 1 / found.get("llama.rope.scaling.factor", 1.0)
    temperature = found.get("llama.rope.scaling.attn_factor", 1.0)
    if kind == "linear":
        return frequencies * scale, temperature

    def dimension(rotations: float) -> float:
        length = found["llama.rope.scaling.original_context_length"]
        return 128 * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    start, end = math.floor(dimension(32.0)), math.ceil(dimension(1.0))
    ramp = 1 - np.clip((np.arange(64) - start) / max(0.001, end - start), 0, 1)
    mixed = frequencies * scale * (1 - ramp) + frequencies * ramp
    return mixed, temperature * (1 + 0.1 * math.log(1 / scale))


@pytest.mark.parametrize("scaling", MORE.values(), ids=MORE)
def test_llama_cpp_rotates_as_trained(scaling: yarn.RopeScaling) -> None:
    found, divisors = rope_values(scaling, MODEL)
    states = found.get("llama.rope.scaling.type")
    said = states.value if states else "rope.freq_base" if divisors is None else "rope_freqs.weight"
    assert readers(scaling, MODEL).endswith(f"embedding: {said} in the file says how")
    read = {  # as the file has it
        key: np.float32(value).item() if kind == "FLOAT32" else value
        for key, (kind, value) in found.items()
    }
    got, temperature = llama_cpp(read, None if divisors is None else divisors.double().numpy())
    # frequencies and divisors are float32, 2^-24 each, the base's error grows with the exponent
    np.testing.assert_allclose(got, yarn.inv_freq(scaling, 128, 500000.0), rtol=2e-6)
    assert temperature == pytest.approx(yarn.attention_factor(scaling), rel=1e-6)


def test_a_killed_export_goes_on(source: Path, tmp_path: Path, monkeypatch: Any) -> None:
    export_checkpoint(ExportConfig(source, tmp_path / "whole", format="gguf"))
    convert, calls = model_writer.convert_tensor, []

    def kill(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        calls.append(name)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return convert(name, tensor, dtype)

    monkeypatch.setattr(model_writer, "convert_tensor", kill)
    monkeypatch.setattr("megatron_ultralong.program.journal.SYNC_BYTES", 1)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(ExportConfig(source, tmp_path / "out", format="gguf"))
    monkeypatch.setattr(model_writer, "convert_tensor", convert)
    report = export_checkpoint(ExportConfig(source, tmp_path / "out", format="gguf"))
    assert report.num_resumed_tensors > 0
    assert "embedding: rope.freq_base in the file says how" in report.good_for["llama.cpp"]
    files = [tmp_path / name / "model.gguf" for name in ("whole", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_damage_is_named(source: Path, tmp_path: Path) -> None:
    export_checkpoint(ExportConfig(source, tmp_path / "out", format="gguf"))
    path = tmp_path / "out" / "model.gguf"
    verify(VerifyConfig(source, path))
    good = path.read_bytes()
    tensor = next(t for t in GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
    merges = good.index(b"tokenizer.ggml.merges")
    for offset, message in (
        (tensor.data_offset + 3, r"differ in blk\.1\.ffn_up\.weight: 1 of 7200 elements"),
        (merges + 50, r"at tokenizer\.ggml\.merges \(byte"),
        (0, r"at its beginning \(byte 0 of"),
    ):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
        with pytest.raises(InputError, match=message):
            verify(VerifyConfig(source, tmp_path / "out"))
    path.write_bytes(good[:-4096])
    with pytest.raises(InputError, match="cut short"):
        verify(VerifyConfig(source, path))
    path.write_bytes(good)
    with pytest.raises(InputError, match=r"at general\.file_type"):
        verify(VerifyConfig(source, path, dtype="fp16"))
    with pytest.raises(InputError, match="import that and export it again"):
        verify(VerifyConfig(source.parent / "hf", path))
    with pytest.raises(InputError, match="--logits computes no GGUF file"):
        verify(VerifyConfig(source, path, logits=True))
    with pytest.raises(InputError, match="written and compared here, not read"):
        import_checkpoint(ImportConfig(path.parent, tmp_path / "again"))


def test_how_to_sample_is_kept(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "megatron")
    unseal(tmp_path / "megatron")
    kept = tmp_path / "megatron" / "huggingface" / "generation_config.json"
    kept.write_text(json.dumps({"temperature": 0.5, "top_p": 0.25, "top_k": 9, "do_sample": True}))
    seal_small_files(tmp_path / "megatron")
    assert load_metadata(tmp_path / "megatron").source_model == "hf"
    export_checkpoint(ExportConfig(tmp_path / "megatron", tmp_path / "out", format="gguf"))
    found = values(GGUFReader(tmp_path / "out" / "model.gguf"))
    sampling = {key: value for key, value in found.items() if ".sampling." in key}
    assert sampling == {
        "general.sampling.temp": 0.5, "general.sampling.top_p": 0.25, "general.sampling.top_k": 9,
    }  # fmt: skip


def test_without_the_package_it_is_said(source: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"needs the package gguf.*pip install 'gguf"):
        export_checkpoint(ExportConfig(source, tmp_path / "out", format="gguf"))
    assert not list(tmp_path.iterdir())
