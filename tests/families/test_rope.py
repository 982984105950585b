"""Rope blocks of every family: their meaning here, in Megatron-Core and in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint, verify
from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.config.convert import ExportConfig, ImportConfig, VerifyConfig
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.evaluation.models.language_models import HuggingFaceModel
from megatron_ultralong.model.families import FAMILIES
from megatron_ultralong.model.yarn import YarnConfig, yarn_attention_factor
from tests.families.shapes import FAULTS, write

LENGTH, ORIGINAL = 256, 64
SCALINGS: dict[str, dict[str, Any]] = {
    "yarn": {"rope_scaling": "yarn", "ramp": "dimensions", "beta_fast": 32.0},
    "yarn-temperature": {
        "rope_scaling": "yarn",
        "ramp": "dimensions",
        "beta_fast": 32.0,
        "attention_factor": "yarn",
    },
    "llama3": {"rope_scaling": "yarn"},
    "linear": {"rope_scaling": "linear"},
}

COVERING = {("qwen2", "yarn"), ("qwen3", "yarn-temperature")}


@pytest.mark.parametrize(
    ("family", "scaling"),
    [
        pytest.param(family, name, marks=() if (family, name) in COVERING else FAULTS)
        for family in FAMILIES
        for name in SCALINGS
    ],
)
def test_four_times_the_original_length(tmp_path: Path, family: str, scaling: str) -> None:
    write(tmp_path / "hf", family, "plain", num_hidden_layers=2)
    values = {"rope_scaling_factor": 4.0, **SCALINGS[scaling]}
    if values["rope_scaling"] == "yarn":
        values["original_max_position_embeddings"] = ORIGINAL
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "base", rope=RopeConfig(**values)))
    assert load_metadata(tmp_path / "base").model.max_position_embeddings == LENGTH
    export_checkpoint(ExportConfig(tmp_path / "base", tmp_path / "out"))
    found = verify(
        VerifyConfig(tmp_path / "base", tmp_path / "out", logits=True, logits_seq_length=LENGTH)
    )
    assert found.logits is not None
    # logits of up to 5 in float32
    assert found.logits.max_difference < 1e-4
    assert found.logits.max_kl < 1e-10


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name == "qwen2" else FAULTS)
        for name in FAMILIES
        if name != "llama"
    ],
)
def test_the_block_of_its_own_page_extends_the_positions(tmp_path: Path, family: str) -> None:
    """As Qwen's pages say it: ``max_position_embeddings`` stays what it was."""
    write(tmp_path / "hf", family, "plain", num_hidden_layers=1)
    block = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
    path = tmp_path / "hf" / "config.json"
    values = json.loads(path.read_text())
    del values["rope_parameters"]
    path.write_text(json.dumps({**values, "rope_scaling": block, "rope_theta": 1000000.0}))
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "base"))
    metadata = load_metadata(tmp_path / "base")
    expected = YarnConfig(4.0, ORIGINAL, 32.0, 1.0, "dimensions", yarn_attention_factor(4.0))
    assert metadata.rope_scaling == expected
    extends = FAMILIES[family].counts_positions_by_yarn
    assert metadata.model.max_position_embeddings == (LENGTH if extends else ORIGINAL)
    judge = HuggingFaceModel(tmp_path / "hf")
    assert judge.max_positions == metadata.model.max_position_embeddings
    export_checkpoint(ExportConfig(tmp_path / "base", tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["max_position_embeddings"] == metadata.model.max_position_embeddings
    source, export = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).model.rotary_emb
        for name in ("hf", "out")
    )
    assert source.inv_freq.equal(export.inv_freq)
    assert source.attention_scaling == export.attention_scaling
    verify(VerifyConfig(tmp_path / "base", tmp_path / "hf", logits=True, logits_seq_length=LENGTH))
