"""Values of ``config.json`` that change nothing are read; of those that do none is.

transformers judges: what is read here computes the same there as the model without the key.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.program.errors import InputError
from tests.models import write_model

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
LAYERS = 2
IDLE: list[dict[str, Any]] = [
    *({"quantization_config": value} for value in ({}, {"quant_method": None}, [], False)),
    *({"per_layer_config": value} for value in ({}, [])),
    *({"kv_sharing_modes": value} for value in ({}, [])),
    *({"dual_chunk_attention_config": value} for value in ({}, [], False)),
    {"hidden_act": "swish"},
    {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 28},
]
ACTIVE: list[dict[str, Any]] = [
    {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    {"quantization_config": {"bits": 8}},
    {"quantization_config": "awq"},
    {"per_layer_config": {"0": {}}},
    {"hidden_act": "gelu"},
    {"layer_types": ["sliding_attention", "full_attention"]},
]
WINDOWS = [
    dict(zip(("use_sliding_window", "sliding_window", "max_window_layers"), values, strict=True))
    for values in itertools.product((True, False), (None, 8), (0, 1, 2, 28, None))
]
"""Of Qwen; a None of the last is left out."""
_USE = "use_sliding_window"
_IDS = torch.arange(1, 65)[None]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    more = {"sliding_window": None} if request.param == "mistral" else {}
    write_model(folder, request.param, num_hidden_layers=LAYERS, **more)
    return folder


@pytest.fixture
def changed(model: Path, tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """The model with other values in its ``config.json``."""

    def change(values: dict[str, Any]) -> Path:
        folder = tmp_path / "hf"
        folder.mkdir(exist_ok=True)
        for path in model.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        config = json.loads((model / "config.json").read_text())
        for key in ("layer_types", "max_window_layers"):  # old files lack the first
            config.pop(key, None)
        (folder / "config.json").write_text(json.dumps({**config, **values}))
        return folder

    return change


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(_IDS).logits
    return found


@pytest.mark.parametrize("values", IDLE, ids=json.dumps)
def test_what_changes_nothing_is_read(
    values: dict[str, Any], changed: Callable[[dict[str, Any]], Path], model: Path, tmp_path: Path
) -> None:
    """And its export is a model that transformers reads, which refuses some of these itself."""
    folder = changed(values)
    import_checkpoint(ImportConfig(folder, tmp_path / "base"))
    export_checkpoint(ExportConfig(tmp_path / "base", tmp_path / "out"))
    assert torch.equal(logits(tmp_path / "out"), logits(model))


@pytest.mark.parametrize("values", ACTIVE, ids=json.dumps)
def test_what_changes_something_is_refused(
    values: dict[str, Any], changed: Callable[[dict[str, Any]], Path]
) -> None:
    with pytest.raises(InputError, match=f"{next(iter(values))} .*is not supported: it must be"):
        HuggingFaceFolder(changed(values))


def test_of_all_windows_those_of_no_layer_are_read(
    changed: Callable[[dict[str, Any]], Path], model: Path
) -> None:
    if "qwen" not in model.name:
        pytest.skip("the family has no such keys")
    expected, num_read = logits(model), 0
    for values in WINDOWS:
        stated = {k: v for k, v in values.items() if v is not None or k == "sliding_window"}
        folder = changed(stated)
        is_idle = torch.equal(logits(folder), expected)
        if "max_window_layers" not in stated and values["sliding_window"] and stated[_USE]:
            is_idle = False  # of which other programs take other layers
        told = contextlib.nullcontext() if is_idle else pytest.raises(InputError, match=_USE)
        with told:
            HuggingFaceFolder(folder)
        num_read += is_idle
    assert num_read == len(WINDOWS) - 3, "a window from layer 0, from layer 1, and from unknown on"
