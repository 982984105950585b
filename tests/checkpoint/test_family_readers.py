"""What engines make of the rope blocks of every family, and of blocks saved by transformers 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.checkpoint.convert.report import inspect
from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.formats.rope_block import export_block, is_in_parameters
from megatron_ultralong.checkpoint.formats.rope_readers import (
    Rope,
    engines,
    good_for,
    oldest_transformers,
)
from megatron_ultralong.config.convert import ExportConfig, ImportConfig, InspectConfig
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.doctor.finding import Finding
from megatron_ultralong.doctor.software import serving_findings
from megatron_ultralong.model.families import FAMILIES
from megatron_ultralong.program.errors import InputError
from tests.families.shapes import write
from tools.engine_matrix.blocks import scalings

BLOCKS = scalings(512)
FIRST = {
    "llama": {"none": ">=4.43", "llama3": ">=4.43", "yarn usual": ">=4.51"},
    "qwen2": {"none": ">=4.43", "llama3": ">=4.45", "yarn usual": ">=4.51"},
    "qwen3": {"none": ">=4.51", "llama3": ">=4.51", "yarn usual": ">=4.51"},
    "mistral": {"none": ">=4.43", "llama3": ">=4.48", "yarn usual": ">=4.51"},
}
"""Releases of transformers: before, Qwen2 and Mistral ran every block without scaling."""


def rope(name: str, family: str, **more: Any) -> Rope:
    """A block of the matrix in a model of ``family``."""
    scaling = BLOCKS[name]
    return Rope(scaling, export_block(scaling), 4096, 32, 10000.0, family, **more)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_release_of_transformers_that_reads_a_block_of_the_family(family: str) -> None:
    found = {name: oldest_transformers(rope(name, family)) for name in FIRST[family]}
    assert found == FIRST[family]


def test_releases_without_the_family_are_not_called_right() -> None:
    said = good_for(rope("none", "qwen3"))
    assert said["transformers 4.43.4 to 4.50.3"] == "wrong: it loads no Qwen3 (dense)"
    assert said["transformers 4.51.3 to 5.23.0"] == "right"


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_reads_the_block_of_some_families_only(family: str) -> None:
    (engine,) = (each for each in engines() if each.name == "llama.cpp")
    verdicts = {name: rope(name, family).verdict(engine) for name in BLOCKS}
    # its converter writes the divisors of llama3 for its architecture llama alone
    llama3 = "right" if FAMILIES[family].gguf == "llama" else "wrong"
    assert verdicts["llama3"].outcome == llama3
    assert verdicts["linear"].outcome == verdicts["yarn usual"].outcome == "right"
    assert verdicts["both"].flags == (
        "--yarn-beta-fast 4 --yarn-beta-slow 1 --override-kv "
        f"{FAMILIES[family].gguf}.rope.scaling.attn_factor=float:0.827852841"
    )


def test_an_export_that_llama_cpp_runs_without_scaling_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "hf", "qwen3", "plain", num_hidden_layers=1)
    recipe = RopeConfig("yarn", 4.0, 64)
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "base", rope=recipe))
    with pytest.raises(InputError, match="rope_type read otherwise") as error:
        export_checkpoint(ExportConfig(tmp_path / "base", tmp_path / "out", engines="llama.cpp"))
    # which has no form for it either
    assert "gguf" not in str(error.value)
    with pytest.raises(InputError, match="no such rotary embedding for qwen3"):
        export_checkpoint(ExportConfig(tmp_path / "base", tmp_path / "out", format="gguf"))
    report = export_checkpoint(ExportConfig(tmp_path / "base", tmp_path / "out", engines="vllm"))
    assert report.good_for["engines"]["llama.cpp b11549"].startswith("wrong: rope_type read")
    assert inspect(InspectConfig(tmp_path / "out"))["good_for"] == report.good_for["engines"]


PARAMETERS = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_theta": 1e6}, False),
        ({"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}}, False),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, True),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e6}}, False),
        ({"rope_parameters": PARAMETERS}, True),
        ({"rope_theta": 10000.0, "rope_parameters": PARAMETERS}, True),
        ({"rope_parameters": PARAMETERS, "rope_scaling": PARAMETERS}, False),
    ],
)
def test_where_a_config_has_its_block(config: dict[str, Any], expected: bool) -> None:
    assert is_in_parameters(config) is expected


@pytest.mark.parametrize(("family", "mlx"), [("llama", "wrong"), ("qwen3", "right")])
def test_engines_that_do_not_look_into_rope_parameters_are_named(
    tmp_path: Path, family: str, mlx: str
) -> None:
    config = {
        "architectures": [FAMILIES[family].architecture],
        "hidden_size": 64,
        "num_attention_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            **PARAMETERS,
            "original_max_position_embeddings": 512,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = inspect(InspectConfig(tmp_path))["good_for"]
    why = "wrong: it does not look into rope_parameters"
    of_four = {"llama": "4.43.4 to 4.57.6", "qwen3": "4.51.3 to 4.57.6"}[family]
    assert said[f"transformers {of_four}"].startswith(why)
    assert said["transformers 5.0.0 to 5.23.0"] == said["vllm 0.32.0"] == "right"
    assert said["mlx-lm 0.32.2"].startswith(mlx)


DEFAULTS = {"transformers": dict.fromkeys(FAMILIES, 1e4), "mlx-lm": {"llama": 1e4, "qwen2": 1e6}}
DEFAULTS["mlx-lm"]["mistral"] = 1e4


@pytest.mark.parametrize("base", [10000.0, 500000.0, 1000000.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_whose_default_is_the_base_is_right_by_it(
    tmp_path: Path, family: str, base: float
) -> None:
    """As transformers 5 saves a model without scaling; never with a scaling."""
    config: dict[str, Any] = {
        "architectures": [FAMILIES[family].architecture],
        "model_type": family,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_theta": base, "rope_type": "default"},
    }
    config |= {"sliding_window": None} if family == "mistral" else {}
    for block in ({}, {"rope_type": "linear", "factor": 2.0}):
        config["rope_parameters"] |= block
        (tmp_path / "config.json").write_text(json.dumps(config))
        said = inspect(InspectConfig(tmp_path))["good_for"]
        for name, newest in (("transformers", " to 4.57.6"), ("mlx-lm", "0.32.2")):
            (text,) = (said[key] for key in said if key.startswith(name) and newest in key)
            if DEFAULTS[name].get(family) == base and not block:
                assert text == f"right by its default (rope_theta {base:,.0f})"
            else:
                reads = (name, family) == ("mlx-lm", "qwen3")
                assert text == "right" if reads else text.startswith("wrong: ")


def test_doctor_names_what_an_engine_drops_in_one_family(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"transformers": "4.44.2"}
    monkeypatch.setattr("megatron_ultralong.doctor.software.installed_version", versions.get)
    (finding,) = serving_findings()
    assert isinstance(finding, Finding)
    assert "Qwen3 (dense): no model" in finding.text
    assert "Mistral: llama3 is run without scaling" in finding.text
