"""What a folder is where its ``config.json`` names no architecture, or is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.convert.report import inspect_config
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.kind import ADAPTER_FILE, kind_of
from megatron_ultralong.model.families import FAMILIES
from megatron_ultralong.program.errors import InputError
from tests.models import write_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_without_architectures_is_read_by_its_model_type(
    tmp_path: Path, family: str
) -> None:
    """As transformers does, which saves a configuration alone without them."""
    window = {"sliding_window": None} if family == "mistral" else {}
    model = write_model(tmp_path, family, num_hidden_layers=1, **window)
    expected = HuggingFaceFolder(tmp_path).model
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text())
    model.config.architectures = None
    model.config.save_pretrained(tmp_path)
    assert not json.loads(path.read_text()).get("architectures")
    assert HuggingFaceFolder(tmp_path).model == expected
    for named in (None, []):
        path.write_text(json.dumps({**whole, "architectures": named}))
        assert HuggingFaceFolder(tmp_path).model == expected
        assert inspect_config(path)["family"] == expected.family.title
    for model_type in ("gpt2", None, 3):
        path.write_text(json.dumps({**whole, "architectures": None, "model_type": model_type}))
        with pytest.raises(InputError, match=r"architectures \[\] is not supported"):
            HuggingFaceFolder(tmp_path)


def test_the_folder_of_an_adapter_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / ADAPTER_FILE).write_text('{"peft_type": "LORA"}')
    with pytest.raises(InputError, match=r"is an adapter \(adapter_config.json\), .*: merge it"):
        kind_of(tmp_path)


def test_other_files_of_a_model_are_no_configuration(tmp_path: Path) -> None:
    """Of each the rope block would be the one that a Llama has by default."""
    write_model(tmp_path, "llama", num_hidden_layers=1)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (tmp_path / "params.json").write_text('{"dim": 64, "rope_theta": 500000.0}')
    names = {path.name for path in tmp_path.glob("*.json")} - {"config.json"}
    assert {"generation_config.json", "tokenizer.json"} <= names
    for name in names:
        with pytest.raises(InputError, match=f"{name} is no configuration of a model: it has none"):
            inspect_config(tmp_path / name)
