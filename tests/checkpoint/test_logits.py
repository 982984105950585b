"""Megatron-Core computes of an import what transformers computes of the source and the export."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint, verify
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.meta import MetaFolder
from megatron_ultralong.checkpoint.logits import check
from megatron_ultralong.checkpoint.logits.check import LayeredLogits, prompt
from megatron_ultralong.checkpoint.logits.comparison import compare_logits, compare_tiles
from megatron_ultralong.checkpoint.logits.megatron_model import megatron_logits
from megatron_ultralong.checkpoint.logits.transformers_model import transformers_logits
from megatron_ultralong.config.convert import ExportConfig, ImportConfig, VerifyConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.model.yarn import LinearConfig
from megatron_ultralong.program.errors import InputError
from tests.checkpoint.llama import save_llama
from tests.ranks import run_on_ranks

LENGTH = 9216
"""Tokens of a row: beyond the 8,192 positions that Llama 3 was pretrained on."""
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "llama3": {
        "rope_type": "llama3",
        "factor": 128.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 128.0,
        "original_max_position_embeddings": 8192,
        "beta_fast": 4.0,
        "beta_slow": 1.0,
        "attention_factor": 1.4852030263919618,
    },
}
LAYOUTS = {
    "tensor-2": ParallelConfig(tensor_model_parallel_size=2),
    "pipeline-2": ParallelConfig(pipeline_model_parallel_size=2),
}
SHAPE = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "hidden_size": 48,
    "intermediate_size": 64,
    "head_dim": 32,
    "initializer_range": 0.15,  # so that a row in a wrong place moves logits by much
}


def on_two_ranks(folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    return {
        (rope, name): megatron_logits(
            MegatronCheckpoint(folder / rope), prompt(130, LENGTH), layout
        )
        for rope in ROPES
        for name, layout in LAYOUTS.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logits")
    for name, rope in ROPES.items():
        block = {**rope, "rope_theta": 500000.0}
        save_llama(folder / f"{name}-hf", rope_parameters=block, **SHAPE)
        import_checkpoint(ImportConfig(folder / f"{name}-hf", folder / name))
        export_checkpoint(ExportConfig(folder / name, folder / f"{name}-export"))
    return folder


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> list[dict[tuple[str, str], torch.Tensor]]:
    return run_on_ranks(2, on_two_ranks, folder)


@pytest.mark.parametrize("rope", ROPES)
def test_one_model_in_two_programs_and_four_layouts(
    folder: Path, two_ranks: list[dict[tuple[str, str], torch.Tensor]], rope: str
) -> None:
    tokens = prompt(130, LENGTH)
    source = transformers_logits(HuggingFaceFolder(folder / f"{rope}-hf"), tokens)
    found = {
        "export": transformers_logits(HuggingFaceFolder(folder / f"{rope}-export"), tokens),
        "one rank": megatron_logits(MegatronCheckpoint(folder / rope), tokens),
        **{name: two_ranks[1][rope, name] for name in LAYOUTS},
    }
    assert torch.equal(found["export"], source)
    for name, values in found.items():
        comparison = compare_logits(source, values)
        # float32 in two programs, up to 9,216 keys: issue 5's figures; yarn's temperature is in
        # cos and sin there, in the softmax's scale here
        assert comparison.max_difference <= 1e-4, name
        assert comparison.max_kl <= 1e-10, name


def test_verify_computes_both_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags: dict[str, Any] = {"logits": True, "logits_seq_length": 64, "json": True}
    verify(VerifyConfig(folder / "yarn-hf", folder / "yarn", **flags))
    values = json.loads(capsys.readouterr().out)["logits"]
    assert (values["seq_length"], values["dtype"]) == (64, "fp32")
    assert 0 < values["max_difference"] < 1e-4
    assert not values["layer_differences"]
    flags = {**flags, "logits_method": "layers", "logits_dtype": "fp64"}
    verify(VerifyConfig(folder / "yarn", folder / "yarn-export", **flags))
    values = json.loads(capsys.readouterr().out)["logits"]
    assert len(values["layer_differences"]) == SHAPE["num_hidden_layers"]
    with pytest.raises(InputError, match="leave --dtype out"):
        verify(VerifyConfig(folder / "yarn-hf", folder / "yarn", dtype="bf16", **flags))


def test_layer_by_layer_gives_the_logits_of_the_whole_models(folder: Path, tmp_path: Path) -> None:
    save_llama(tmp_path / "hf", tied=True, hidden_size=96, dtype=torch.bfloat16)
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "megatron"))
    flags: dict[str, Any] = {"format": "meta", "num_shards": 2}
    export_checkpoint(ExportConfig(tmp_path / "megatron", tmp_path / "meta", **flags))
    tokens = prompt(130, 700)  # the last tile is not a whole one
    for a, b in (
        (HuggingFaceFolder(folder / "yarn-hf"), MegatronCheckpoint(folder / "yarn")),
        (MetaFolder(tmp_path / "meta"), MegatronCheckpoint(tmp_path / "megatron")),
        (MegatronCheckpoint(tmp_path / "megatron"), MegatronCheckpoint(tmp_path / "megatron")),
    ):
        layered = LayeredLogits((a, b), tokens, torch.float32)
        found = [torch.cat(tiles) for tiles in zip(*layered.tiles(), strict=True)]
        for model, values in zip((a, b), found, strict=True):
            assert torch.equal(values, check.model_logits(model, tokens, torch.float32))
        assert len(layered.layer_differences) == a.model.num_layers
    # yarn's temperature is in cos and sin there, in the softmax's scale here
    yarn = LayeredLogits(
        (HuggingFaceFolder(folder / "yarn-hf"), MegatronCheckpoint(folder / "yarn")),
        tokens,
        torch.float64,
    )
    assert compare_tiles(yarn.tiles()).max_difference < 1e-12
    assert 0 < max(yarn.layer_differences) < 1e-12


@pytest.mark.parametrize(
    "rope",
    [pytest.param(rope, marks=() if rope == "yarn" else pytest.mark.slow) for rope in ROPES],
)
def test_in_float64_nothing_is_left_of_the_difference(folder: Path, rope: str) -> None:
    models = HuggingFaceFolder(folder / f"{rope}-hf"), MegatronCheckpoint(folder / rope)
    comparison = check.check_logits(models, LENGTH, "fp64", "whole")
    # sums of up to 9,216 products in float64, of size 1: 1e-14 is usual
    assert comparison.max_difference < 1e-12
    assert comparison.max_kl < 1e-14


def test_the_layer_that_is_wrong_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "llama3-hf", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    rows = tensors["model.layers.1.self_attn.q_proj.weight"]
    tensors["model.layers.1.self_attn.q_proj.weight"] = rows.roll(1, 0).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    models = HuggingFaceFolder(tmp_path / "hf"), MegatronCheckpoint(folder / "llama3")
    with pytest.raises(InputError, match=r"hidden states part in layer 1, by 0\.\d+ of their norm"):
        check.check_logits(models, 64, method="layers")


def test_other_logits_are_refused(folder: Path) -> None:
    models = HuggingFaceFolder(folder / "yarn-hf"), MegatronCheckpoint(folder / "default")
    with pytest.raises(
        InputError, match=r"in fp64 the largest difference is \d\.\d+ \(rounding makes .*e-09, for"
    ):
        check.check_logits(models, 64)


def test_the_method_is_that_which_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # without a temperature both programs round alike, and nothing is computed again in float64
    models = HuggingFaceFolder(folder / "default-hf"), MegatronCheckpoint(folder / "default")

    def leave(num_bytes: int) -> None:
        monkeypatch.setattr(check, "available_memory", lambda: num_bytes)

    assert not check.check_logits(models, 2048).layer_differences
    leave(7_000_000)  # 7.7 MB are needed for the whole models, 6.6 MB for one layer of each
    assert check.check_logits(models, 2048).layer_differences
    with pytest.raises(
        InputError, match=r"needs about \S+ MB .* 2048 tokens \(whole; \S+ MB layer by layer"
    ):
        check.check_logits(models, 2048, method="whole")
    leave(1000)
    with pytest.raises(InputError, match=r"64 tokens \(layers; .*, \S+ \w?B are available"):
        check.check_logits(models, 64)


def test_another_reading_of_the_rope_block_is_refused(folder: Path) -> None:
    model = HuggingFaceFolder(folder / "default-hf")
    model.rope_scaling = LinearConfig(2.0)
    with pytest.raises(InputError, match="transformers reads the rope block in another way"):
        transformers_logits(model, prompt(130, 8))
