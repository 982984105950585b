"""Keys of a model's files that choose code in their readers: not obeyed here, not handed on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from megatron_ultralong.checkpoint.convert.small_files import check_tokenizer_names
from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.hugging_face_config import without_code
from megatron_ultralong.checkpoint.logits.transformers_model import transformers_model
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.program.errors import InputError
from tests.models import write_llama

CODE = {
    "attn_implementation": "somebody/kernel",
    "_attn_implementation": "somebody/kernel",
    "_attn_implementation_internal": "somebody/kernel",
    "experts_implementation": "somebody/kernel",
    "auto_map": {"AutoModelForCausalLM": "code.Model"},
    "trust_remote_code": True,
    "custom_generate": "somebody/generate",
    "use_kernels": True,
}
PLAIN = {"pad_token_id": 0, "initializer_range": 0.02, "use_cache": True, "mine": [1]}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "hf"
    write_llama(folder, num_hidden_layers=2)
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = folder / name
        values = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**values, **PLAIN, **CODE}))
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "somebody/model"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    (folder / "code.py").write_text("raise SystemExit('it ran')")
    return folder


def test_transformers_is_given_a_shape_and_tensors(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = transformers_model(HuggingFaceFolder(source))
    assert model.config._attn_implementation == "sdpa"
    assert not hasattr(model.config, "auto_map")
    weight = HuggingFaceFolder(source).tensors["model.norm.weight"].read()
    assert torch.equal(model.model.norm.weight.data, weight)


def test_exports_leave_them_out(source: Path, tmp_path: Path) -> None:
    import_checkpoint(ImportConfig(source, tmp_path / "megatron"))
    export_checkpoint(ExportConfig(tmp_path / "megatron", tmp_path / "out"))
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        values = json.loads((tmp_path / "out" / name).read_text())
        assert not set(values) & set(CODE), name
        for key, value in PLAIN.items():
            assert values[key] == value
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert not list((tmp_path / "out").glob("*.py"))


@pytest.mark.parametrize(
    ("name", "is_told"),
    [("AutoModelForCausalLM", True), ("AutoModel", True), ("AutoTokenizer", False)],
)
def test_code_that_is_not_run_is_told_of(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, is_told: bool
) -> None:
    shutil.copytree(source, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "auto_map": {name: "modeling_mine.Mine"}}))
    HuggingFaceFolder(tmp_path / "hf")
    told = "names code of the model's own (modeling_mine.Mine), which is not run"
    assert (told in capsys.readouterr().err) == is_told


def test_inner_objects_lose_them_too() -> None:
    assert without_code({"a": {"auto_map": 1, "b": [1]}, "attn_implementation": "x"}) == {
        "a": {"b": [1]}
    }


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", 7, ["a"]])
def test_a_tokenizer_names_its_own_files(source: Path, tmp_path: Path, name: object) -> None:
    shutil.copytree(source, tmp_path / "hf")
    path = tmp_path / "hf" / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_file": name, "vocab_file": None}))
    with pytest.raises(InputError, match=r"tokenizer_file is .* not a file of its own folder"):
        check_tokenizer_names(tmp_path / "hf")
    with pytest.raises(InputError, match=r"tokenizer_file is .* not a file of its own folder"):
        import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "out"))
    path.write_text(json.dumps({"tokenizer_file": "tokenizer.json"}))
    check_tokenizer_names(tmp_path / "hf")
