"""Hugging Face -> Megatron -> Hugging Face: every bit, and the same logits in transformers."""

import hashlib
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from megatron_ultralong.checkpoint.convert.report import inspect
from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint, verify
from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.weight_map import EMBEDDING
from megatron_ultralong.config.convert import (
    ExportConfig,
    ImportConfig,
    InspectConfig,
    VerifyConfig,
)
from megatron_ultralong.program.errors import InputError
from tests.checkpoint.llama import ROPES, edit_config, save_llama


def round_trip(tmp_path: Path, **export: Any) -> Path:
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "megatron"))
    out = tmp_path / "out"
    export_checkpoint(ExportConfig(tmp_path / "megatron", out, **export))
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, read by the safetensors library alone."""
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)), name


LONG = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
SHAPES: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tied": True},
    "one-layer-mha": {"num_hidden_layers": 1, "num_key_value_heads": 6},
    "mqa": {"num_key_value_heads": 1, "vocab_size": 257},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_is_bit_equal(
    tmp_path: Path, shape: dict[str, Any], dtype: torch.dtype
) -> None:
    save_llama(tmp_path / "hf", dtype=dtype, **shape)
    assert_same_bits(weights(tmp_path / "hf"), weights(round_trip(tmp_path)))


@pytest.mark.parametrize("rope", ROPES)
def test_transformers_gives_the_same_logits(tmp_path: Path, rope: str) -> None:
    source = save_llama(tmp_path / "hf", rope=rope)
    export = LlamaForCausalLM.from_pretrained(round_trip(tmp_path)).eval()
    tokens = torch.arange(200).reshape(1, -1) * 7 % 130
    with torch.no_grad():
        assert torch.equal(source(tokens).logits, export(tokens).logits)
    assert export.config.max_position_embeddings == source.config.max_position_embeddings


def test_the_config_of_older_transformers_is_read(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf", rope="llama3")
    rope = ROPES["llama3"]
    edit_config(tmp_path / "hf", rope_parameters=None, rope_scaling=rope, rope_theta=10000.0)
    export = LlamaForCausalLM.from_pretrained(round_trip(tmp_path))
    assert torch.equal(export.model.rotary_emb.inv_freq, source.model.rotary_emb.inv_freq)


def test_shards_in_and_out(tmp_path: Path) -> None:
    save_llama(tmp_path / "hf", max_shard_size="100KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 3
    out = round_trip(tmp_path, max_shard_size_gb=1e-4)
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all((out / name).stat().st_size < 120_000 for name in shards)
    assert_same_bits(weights(tmp_path / "hf"), weights(out))
    LlamaForCausalLM.from_pretrained(out)  # reads them through the index
    index = json.loads((out / "model.safetensors.index.json").read_text())
    total = sum(tensor.nbytes for tensor in weights(out).values())
    assert index["metadata"]["total_size"] == total


@pytest.mark.parametrize("zipped", [True, False])
def test_old_pickle_files(tmp_path: Path, zipped: bool) -> None:
    save_llama(tmp_path / "hf")
    tensors = weights(tmp_path / "hf")
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    torch.save(
        {**tensors, **buffer},
        tmp_path / "hf" / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    (tmp_path / "hf" / "model.safetensors").unlink()
    assert_same_bits(tensors, weights(round_trip(tmp_path)))


def test_an_export_states_the_dtype_of_most_weights(tmp_path: Path) -> None:
    """transformers 5 reads all in it; an enlarged embedding may be the one that is not."""
    save_llama(tmp_path / "hf", dtype=torch.bfloat16)
    tensors = weights(tmp_path / "hf")
    tensors[EMBEDDING] = tensors[EMBEDDING].float()
    save_file(tensors, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    out = round_trip(tmp_path)
    assert_same_bits(tensors, weights(out))
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_dtype_of_the_export(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    save_llama(tmp_path / "hf")
    out = round_trip(tmp_path, dtype=name)
    converted = {key: tensor.to(dtype) for key, tensor in weights(tmp_path / "hf").items()}
    assert_same_bits(converted, weights(out))
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == str(dtype)[6:]
    verify(VerifyConfig(tmp_path / "hf", out, dtype=name))  # type: ignore[arg-type]


def test_models_in_two_dtypes_are_told_how_to_be_compared(tmp_path: Path) -> None:
    """Whatever the dtypes and the flag, doing what the message says is enough."""
    save_llama(tmp_path / "hf")
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "megatron"))
    for name in LONG:
        export = ExportConfig(tmp_path / "megatron", tmp_path / name, dtype=name)  # type: ignore[arg-type]
        export_checkpoint(export)
    for first, second, flag in itertools.product(LONG, LONG, ["keep", *LONG]):
        if second == (first if flag == "keep" else flag):
            continue
        pair = [tmp_path / first, tmp_path / second]
        with pytest.raises(InputError) as error:
            verify(VerifyConfig(*pair, dtype=flag))  # type: ignore[arg-type]
        message = str(error.value)
        assert message.startswith(f"the first model is in {LONG[first]}")
        assert f"the second in {LONG[second]}" in message
        found = re.search(r"(name the model in \w+ first.* and )?give --dtype (\w+)", message)
        assert found or "; leave --dtype out" in message
        if found and found[1]:
            pair.reverse()
        config = VerifyConfig(*pair, dtype=found[2] if found else "keep")  # type: ignore[arg-type]
        if {first, second} != {"bf16", "fp16"}:  # of which neither holds the other's bits
            verify(config)


def test_fp16_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    save_llama(tmp_path / "hf", dtype=torch.bfloat16)
    tensors = weights(tmp_path / "hf")
    tensors["model.norm.weight"][3] = 1e5
    tensors["model.norm.weight"][4] = math.inf  # beside which the first is no less beyond it
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"model\.norm\.weight .* 9\.984e\+04.* ends at 6\.55e\+04"
    ):
        round_trip(tmp_path, dtype="fp16")
    assert not (tmp_path / "out").exists()


def test_values_that_are_not_finite_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_llama(tmp_path / "hf")
    tensors = weights(tmp_path / "hf")
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    assert_same_bits(tensors, weights(round_trip(tmp_path)))
    said = "warning: NaN or infinite values in 1 tensor (model.norm.weight): such a model"
    assert capsys.readouterr().err.count(said) == 2  # of the import, and of the export


def test_what_is_no_weight_goes_along(tmp_path: Path) -> None:
    save_llama(tmp_path / "hf")
    edit_config(tmp_path / "hf", attention_dropout=0.25, my_key={"a": 1})
    (tmp_path / "hf" / "chat_template.jinja").write_text("{{ messages }}")
    out = round_trip(tmp_path)
    config = json.loads((out / "config.json").read_text())
    assert config["attention_dropout"] == 0.25
    assert config["my_key"] == {"a": 1}
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.model_max_length == 256  # the model's positions, not the source's 64
    metadata = load_metadata(tmp_path / "megatron")
    digest = hashlib.sha256((out / "tokenizer.json").read_bytes()).hexdigest()
    assert metadata.tokenizer_sha256 == digest
    assert metadata.model == HuggingFaceFolder(tmp_path / "hf").model


def test_verify_names_the_one_flipped_bit(tmp_path: Path) -> None:
    save_llama(tmp_path / "hf", dtype=torch.bfloat16)
    out = round_trip(tmp_path)
    verify(VerifyConfig(tmp_path / "hf", tmp_path / "megatron"))
    tensors = weights(out)
    name = "model.layers.2.self_attn.k_proj.weight"
    tensors[name].view(torch.int16)[5, 7] ^= 1
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    message = rf"differ in {name}: 1 of 2304 elements, first \[5, 7\]"
    for a in (tmp_path / "hf", tmp_path / "megatron"):
        with pytest.raises(InputError, match=message):
            verify(VerifyConfig(a, out))


def test_inspect_shows_both_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_llama(tmp_path / "hf", rope="yarn")
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "megatron"))
    capsys.readouterr()
    for folder, form in (("hf", "Hugging Face"), ("megatron", "Megatron torch_dist")):
        values = inspect(InspectConfig(tmp_path / folder, json=True))
        assert json.loads(capsys.readouterr().out) == values
        assert values["format"] == form
        assert values["num_parameters"] == sum(t.numel() for t in weights(tmp_path / "hf").values())
        assert values["rope"]["scaling_factor"] == 8.0
        assert values["dtype"] == "float32"
        inspect(InspectConfig(tmp_path / folder))
        assert form in capsys.readouterr().out
        assert values["tensors"][2] == {
            "megatron": "self_attention.linear_qkv.weight",
            "hugging_face": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "layers": 4,
            "shape": "160 x 72",
            "dtype": "float32",
        }
