"""Meta's format: bit-equal round trips, and an independent forward pass in its rotary form."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from megatron_ultralong.checkpoint.convert.report import inspect
from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint, verify
from megatron_ultralong.config.convert import (
    ExportConfig,
    ImportConfig,
    InspectConfig,
    VerifyConfig,
)
from megatron_ultralong.model import yarn
from megatron_ultralong.program.errors import InputError
from tests.checkpoint.llama import save_llama
from tests.checkpoint.meta_files import MetaShape, Tensors, load_meta, random_tensors, save_files

SMALL = MetaShape(dim=64, heads=8, groups=8, ffn=160, layers=3, vocabulary=256)
PARAMS = SMALL.params(rope_theta=500000.0, multiple_of=32)
DIM, HEADS, FFN, LAYERS, VOCABULARY = (
    SMALL.dim,
    SMALL.heads,
    SMALL.ffn,
    SMALL.layers,
    SMALL.vocabulary,
)
SCALED = {"use_scaled_rope": True, "rope_scaling_factor": 32.0}


def small_tensors(tied: bool = False, groups: int = SMALL.groups) -> Tensors:
    return random_tensors(dataclasses.replace(SMALL, groups=groups), tied)


def save_meta(folder: Path, tensors: Tensors, num_shards: int = 1, **flags: Any) -> None:
    save_files(folder, tensors, {**PARAMS, **flags}, num_shards)


def meta_forward(t: Tensors, tokens: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """Llama as Meta's model.py computes it: pairs of neighbours as complex numbers."""
    length, size = len(tokens), DIM // HEADS
    angles = torch.outer(torch.arange(length).double(), inv_freq)
    rotation = torch.polar(torch.ones_like(angles), angles)[:, None, :]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * t[f"{name}.weight"]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.view(length, -1, size // 2, 2))
        return torch.view_as_real(pairs * rotation).flatten(2)

    h = t["tok_embeddings.weight"][tokens]
    for layer in range(LAYERS):
        name = f"layers.{layer}"
        x = norm(h, f"{name}.attention_norm")
        q, k, v = (
            (x @ t[f"{name}.attention.w{part}.weight"].T).view(length, -1, size) for part in "qkv"
        )
        q, k = rotate(q), rotate(k)
        k, v = (part.repeat_interleave(HEADS // part.shape[1], dim=1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
        causal = torch.ones(length, length).tril() == 0
        weights = scores.masked_fill(causal, float("-inf")).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", weights, v).reshape(length, -1)
        h = h + out @ t[f"{name}.attention.wo.weight"].T
        x = norm(h, f"{name}.ffn_norm")
        gate, up = (x @ t[f"{name}.feed_forward.w{part}.weight"].T for part in "13")
        h = h + (F.silu(gate) * up) @ t[f"{name}.feed_forward.w2.weight"].T
    return norm(h, "norm") @ t["output.weight"].T


def export(tmp_path: Path, name: str, **flags: Any) -> Path:
    export_checkpoint(ExportConfig(tmp_path / "megatron", tmp_path / name, **flags))
    return tmp_path / name


@pytest.mark.parametrize("scaled", [False, True])
def test_transformers_computes_what_meta_computes(tmp_path: Path, scaled: bool) -> None:
    tensors = small_tensors(groups=2)
    save_meta(tmp_path / "meta", tensors, n_kv_heads=2, **(SCALED if scaled else {}))
    import_checkpoint(ImportConfig(tmp_path / "meta", tmp_path / "megatron"))
    model = LlamaForCausalLM.from_pretrained(export(tmp_path, "hf")).eval()
    tokens = torch.arange(300) * 7 % VOCABULARY
    scaling = yarn.YarnConfig(32.0) if scaled else None
    inv_freq = torch.from_numpy(yarn.inv_freq(scaling, DIM // HEADS, 500000.0))
    with torch.no_grad():
        found = model(tokens[None]).logits[0]
        expected = meta_forward({k: v.double() for k, v in tensors.items()}, tokens, inv_freq)
    # float32 against float64: sums of up to 300 products, angles up to 300 rad
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)
    assert model.config.max_position_embeddings == (131072 if scaled else 8192)


@pytest.mark.parametrize(
    ("factor", "positions"), [(8.0, 131072), (32.0, 131072), (128.0, 2**20), (512.0, 2**22)]
)
def test_an_extended_model_keeps_its_positions(
    tmp_path: Path, factor: float, positions: int
) -> None:
    """Those of 1M came back as 131,072, and an export of that said so to engines."""
    save_meta(tmp_path / "meta", small_tensors(), **{**SCALED, "rope_scaling_factor": factor})
    import_checkpoint(ImportConfig(tmp_path / "meta", tmp_path / "megatron"))
    config = json.loads((export(tmp_path, "hf") / "config.json").read_text())
    assert config["max_position_embeddings"] == positions
    assert config["rope_scaling"]["factor"] == factor
    assert config["rope_scaling"]["original_max_position_embeddings"] == 8192


@pytest.mark.parametrize("num_shards", [1, 8])
@pytest.mark.parametrize("tied", [False, True])
def test_meta_to_megatron_to_hugging_face_and_back(
    tmp_path: Path, num_shards: int, tied: bool
) -> None:
    tensors = small_tensors(tied)
    save_meta(tmp_path / "meta", tensors, num_shards)
    import_checkpoint(ImportConfig(tmp_path / "meta", tmp_path / "megatron"))
    hugging_face = export(tmp_path, "hf")
    shutil.rmtree(tmp_path / "megatron")
    import_checkpoint(ImportConfig(hugging_face, tmp_path / "megatron"))
    back = export(tmp_path, "back", format="meta", num_shards=num_shards)
    for number in range(num_shards):
        source, found = load_meta(tmp_path / "meta", number), load_meta(back, number)
        source.pop("rope.freqs")  # frequencies, which are made again
        assert set(found) == set(source)
        assert all(torch.equal(source[name], found[name]) for name in source)
    assert (back / "tokenizer.model").read_bytes() == b"IQ== 0\n"
    values = json.loads((back / "params.json").read_text())
    assert {**values, **{k: v for k, v in PARAMS.items() if k != "multiple_of"}} == values
    # as Meta's code makes the width of the MLP
    width = int(values["ffn_dim_multiplier"] * int(2 * 4 * DIM / 3))
    assert -(-width // values["multiple_of"]) * values["multiple_of"] == FFN


def test_llama_2_cuts_the_embedding_by_columns(tmp_path: Path) -> None:
    tensors = small_tensors()
    params = {"rope_theta": 10000.0, "vocab_size": -1}
    save_meta(tmp_path / "one", tensors, **params)
    save_files(tmp_path / "two", tensors, {**PARAMS, **params}, 2, embedding_axis=1)
    verify(VerifyConfig(tmp_path / "one", tmp_path / "two"))
    assert inspect(InspectConfig(tmp_path / "two"))["model"]["max_position_embeddings"] == 4096


def test_a_hugging_face_model_leaves_for_meta(tmp_path: Path) -> None:
    save_llama(tmp_path / "hf", hidden_size=96, rope="default")
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "megatron"))
    export(tmp_path, "meta", format="meta", num_shards=2, dtype="bf16")
    verify(VerifyConfig(tmp_path / "hf", tmp_path / "meta", dtype="bf16"))
    with pytest.raises(InputError, match=r"does not divide into 7 shards"):
        export(tmp_path, "seven", format="meta", num_shards=7)
    assert not (tmp_path / "seven").exists()


def test_equal_but_untied_weights_leave_for_meta(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "hf", hidden_size=96)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    model.save_pretrained(tmp_path / "hf")
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "megatron"))
    export(tmp_path, "meta", format="meta")
    verify(VerifyConfig(tmp_path / "hf", tmp_path / "meta"))


def test_a_rope_that_meta_does_not_have_is_refused(tmp_path: Path) -> None:
    save_llama(tmp_path / "hf", hidden_size=96, rope="yarn")
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "megatron"))
    with pytest.raises(
        InputError, match=r"Meta's code scales .* by one formula.*not as this model: yarn x"
    ):
        export(tmp_path, "meta", format="meta")


def test_bad_meta_folders_are_refused(tmp_path: Path) -> None:
    tensors = small_tensors()
    save_meta(tmp_path / "meta", tensors, num_shards=4)
    (tmp_path / "meta" / "consolidated.01.pth").unlink()
    with pytest.raises(InputError, match="download the missing shards"):
        import_checkpoint(ImportConfig(tmp_path / "meta", tmp_path / "out"))
    (tmp_path / "meta" / "consolidated.03.pth").unlink()
    (tmp_path / "meta" / "consolidated.02.pth").rename(tmp_path / "meta" / "consolidated.01.pth")
    with pytest.raises(InputError, match=r"attention\.wq\.weight is .*4 shards|2 shards make it"):
        import_checkpoint(ImportConfig(tmp_path / "meta", tmp_path / "out"))
    save_meta(tmp_path / "scaled", tensors, use_scaled_rope=True)
    with pytest.raises(InputError, match=r'add "rope_scaling_factor": 32\.0'):
        import_checkpoint(ImportConfig(tmp_path / "scaled", tmp_path / "out"))
    save_meta(tmp_path / "moe", {**tensors, "layers.0.router.weight": torch.ones(2)})
    with pytest.raises(InputError, match=r"holds tensor layers\.0\.router\.weight"):
        import_checkpoint(ImportConfig(tmp_path / "moe", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


OTHER_MODELS: list[dict[str, Any]] = [
    {"sliding_window": 4096},  # Mistral 7B v0.1, in files of Meta's format
    {"head_dim": 16},
    {"hidden_dim": 2 * FFN},
    {"moe": {"num_experts": 8}},
    {"rope_high_freq_factor": 8.0, **SCALED},
    {"quantization_args": {"scheme": "int8"}},
    {"attention_scale": 0},
]
NO_OTHERS: list[dict[str, Any]] = [
    {"sliding_window": None, "head_dim": DIM // HEADS, "hidden_dim": FFN},
    {"vision_chunk_size": -1, "quantization_args": None, "tied_embeddings": False},
    {"rope_high_freq_factor": 4, **SCALED, "max_batch_size": 32, "max_seq_len": 512},
]


@pytest.mark.parametrize("keys", OTHER_MODELS, ids=lambda keys: next(iter(keys)))
def test_keys_of_other_models_are_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    save_meta(tmp_path / "meta", small_tensors(), **keys)
    name = next(iter(keys))
    with pytest.raises(InputError, match=rf"params\.json: {name} is .*: (Meta's code|it must be)"):
        import_checkpoint(ImportConfig(tmp_path / "meta", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keys", NO_OTHERS, ids=lambda keys: next(iter(keys)))
def test_keys_that_change_nothing_are_taken(tmp_path: Path, keys: dict[str, Any]) -> None:
    save_meta(tmp_path / "meta", small_tensors(), **keys)
    import_checkpoint(ImportConfig(tmp_path / "meta", tmp_path / "out"))
