"""Small files of an export: the source's byte for byte, or said in the report to be otherwise."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from megatron_ultralong.checkpoint.convert.report import TRIED, ConversionReport
from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import SOURCE_FOLDER
from megatron_ultralong.checkpoint.formats.tokenizer_files import TokenizerFiles
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.program.errors import InputError
from tests.checkpoint.llama import edit_config
from tests.data.test_spaces_before_texts import write as write_spaces
from tools.export_matrix.cases import KINDS, TEMPLATE, TOOL_TEMPLATE, save_model, save_tokenizer
from tools.export_matrix.comparison import export_good_for
from tools.export_matrix.probe import MESSAGES, TEXTS

WRITTEN_ANEW = {"config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    save_model(folder)
    return folder


def there_and_back(
    model: Path, folder: Path, kind: str, **flags: Any
) -> tuple[Path, ConversionReport]:
    """A source with a tokenizer of that kind, and the report of its export."""
    source = shutil.copytree(model, folder / "hf")
    save_tokenizer(source, kind)
    return source, export(folder, **flags)


def export(folder: Path, **flags: Any) -> ConversionReport:
    import_checkpoint(ImportConfig(folder / "hf", folder / "megatron"))
    return export_checkpoint(ExportConfig(folder / "megatron", folder / "out", **flags))


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_report_does_not_name_is_byte_equal(
    model: Path, tmp_path: Path, kind: str
) -> None:
    source, report = there_and_back(model, tmp_path, kind)
    before, after = files(source), files(tmp_path / "out")
    changed = {name for name in after if after[name] != before.get(name)} - WRITTEN_ANEW
    assert changed == set(report.changed_files)
    assert changed == (set() if kind == "four" else {"tokenizer_config.json"})
    assert set(before) <= set(after)
    # what rows and results know the tokenizer by
    assert before["tokenizer.json"] == after["tokenizer.json"]
    expected = Tokenizer.from_file(str(source / "tokenizer.json"))
    one, other = (AutoTokenizer.from_pretrained(path) for path in (source, tmp_path / "out"))
    ids = [expected.encode(text).ids for text in TEXTS]
    assert [other.encode(text) for text in TEXTS] == ids
    if kind == "bare":  # transformers 5.23 makes a tokenizer of its own of such a source
        return
    if kind == "llama-class" and transformers.__version__ == "5.20.2":  # the same
        assert [one.encode(text) for text in TEXTS] != ids
        return
    assert [one.encode(text) for text in TEXTS] == ids
    assert one.get_vocab() == other.get_vocab()
    assert one.special_tokens_map == other.special_tokens_map
    assert one.all_special_tokens == other.all_special_tokens
    assert one.chat_template == other.chat_template
    texts = [t.apply_chat_template(MESSAGES, tokenize=False) for t in (one, other)]
    assert texts[0] == texts[1]


def test_a_second_export_changes_nothing_more(model: Path, tmp_path: Path) -> None:
    there_and_back(model, tmp_path, "two-templates")
    shutil.move(tmp_path / "out", tmp_path / "second" / "hf")
    report = export(tmp_path / "second")
    assert not report.changed_files
    assert files(tmp_path / "second" / "out") == files(tmp_path / "second" / "hf")


def test_files_of_further_templates_go_along(model: Path, tmp_path: Path) -> None:
    there_and_back(model, tmp_path, "two-templates")
    name = "additional_chat_templates/tool_use.jinja"
    assert (tmp_path / "out" / name).read_text() == TOOL_TEMPLATE
    values = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert values["chat_template"] == [
        {"name": "default", "template": TEMPLATE},
        {"name": "tool_use", "template": TOOL_TEMPLATE},
    ]
    path = tmp_path / "megatron" / SOURCE_FOLDER / name
    path.write_text("{{ 'other' }}")
    with pytest.raises(InputError, match=r"tool_use\.jinja .*or remove .*checksums\.json"):
        export_checkpoint(ExportConfig(tmp_path / "megatron", tmp_path / "again"))


def test_the_template_of_a_file_is_that_of_every_release(model: Path, tmp_path: Path) -> None:
    """Instruction tuning puts a file beside a base model's configuration."""
    source = shutil.copytree(model, tmp_path / "hf")
    save_tokenizer(source, "four")
    (source / "chat_template.jinja").write_bytes(b"{{ 'a' }}\r\n{{ 'b' }}")
    report = export(tmp_path)
    values = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert values["chat_template"] == "{{ 'a' }}\n{{ 'b' }}"
    assert report.changed_files["tokenizer_config.json"][0] == "chat_template that of the file"
    (source / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"chat_template\.jinja is not UTF-8"):
        import_checkpoint(ImportConfig(source, tmp_path / "damaged"))


def test_merges_as_strings(model: Path, tmp_path: Path) -> None:
    source, report = there_and_back(model, tmp_path, "five", tokenizer_merges="strings")
    assert report.changed_files["tokenizer.json"] == ["merges as strings"]
    assert report.good_for["files"]["tokenizer.json"] == ">=4.43"
    assert report.good_for["transformers"] == ">=4.43"
    fast = json.loads((tmp_path / "out" / "tokenizer.json").read_text("utf-8"))
    assert all(isinstance(merge, str) for merge in fast["model"]["merges"])
    one, other = (
        Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (source, tmp_path / "out")
    )
    assert one.to_str() == other.to_str()


def test_merges_that_strings_cannot_say(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has a space in a token.*leave out --tokenizer-merges"):
        there_and_back(model, tmp_path, "spaced", tokenizer_merges="strings")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "file", "text"),
    [
        ({}, "tokenizer.json", ">=4.45"),
        ({"normalizer": {"type": "Newer"}}, "tokenizer.json", "not tried: normalizer Newer"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "FixedLength"}]}},
            "tokenizer.json",
            "not tried: pre_tokenizer FixedLength",
        ),
    ],
)
def test_what_old_releases_cannot_read_is_said(
    tmp_path: Path, changes: dict[str, Any], file: str, text: str
) -> None:
    save_tokenizer_in(tmp_path, "five")
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert TokenizerFiles(tmp_path).readers()[file].startswith(text)


def save_tokenizer_in(folder: Path, kind: str) -> None:
    folder.mkdir(exist_ok=True)
    save_tokenizer(folder, kind)


def test_a_class_that_makes_its_own_tokenizer_is_kept_and_said(tmp_path: Path) -> None:
    save_tokenizer_in(tmp_path, "llama-class")
    path = tmp_path / "tokenizer_config.json"
    values = json.loads(path.read_text())
    files = TokenizerFiles(tmp_path)
    assert files.config(values)[0]["tokenizer_class"] == "PreTrainedTokenizerFast"
    # Llama's class adds a BOS token in 4.x; tokenizer.json does not
    path.write_text(json.dumps({**values, "add_bos_token": True}))
    files = TokenizerFiles(tmp_path)
    said = files.readers()["tokenizer_config.json"]
    assert said == "not tried: tokenizer_class LlamaTokenizerFast makes a tokenizer of its own"
    new, changes = files.config({**values, "add_bos_token": True})
    assert (new["tokenizer_class"], changes) == ("LlamaTokenizerFast", [])


@pytest.mark.parametrize("spaces", ["first", "always", "never", "prepended"])
def test_a_sentencepiece_vocabulary_is_read_as_its_rows_were_written(
    tmp_path: Path, spaces: str
) -> None:
    """Llama's class of 5.x gives texts behind special tokens other ids than ``tokenizer.json``."""
    write_spaces(tmp_path, spaces)
    values = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    new, changes = TokenizerFiles(tmp_path).config(values)
    assert changes == ["tokenizer_class LlamaTokenizer -> PreTrainedTokenizerFast"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(new))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    judge = AutoTokenizer.from_pretrained(tmp_path)
    expected = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("hello world", "<|im_start|>user\nhow are you<|im_end|>\n", " hello"):
        ids = expected.encode(text, add_special_tokens=False).ids
        assert judge.encode(text, add_special_tokens=False) == ids


def test_an_export_says_of_itself_what_its_report_said(model: Path, tmp_path: Path) -> None:
    _, report = there_and_back(model, tmp_path, "five")
    assert export_good_for(tmp_path / "out") == report.good_for
    assert report.good_for["tried"] == f"transformers {', '.join(TRIED)}"
    assert report.tokenizer_sha256 is not None


def test_heads_of_another_size_need_a_later_release(model: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "hf", head_dim=48)
    save_tokenizer(tmp_path / "hf", "four")
    assert export(tmp_path).good_for["files"]["config.json"] == ">=4.45"


def test_meta_with_a_tokenizer_json_alone_is_read_back(model: Path, tmp_path: Path) -> None:
    source = shutil.copytree(model, tmp_path / "hf")
    save_tokenizer(source, "two-templates")
    edit_config(source, bos_token_id=None)
    report = export(tmp_path, format="meta")
    assert report.good_for["tokenizer"].startswith("tokenizer.json, which `convert import` reads")
    assert not (tmp_path / "out" / "generation_config.json").exists()
    again = import_checkpoint(ImportConfig(tmp_path / "out", tmp_path / "again"))
    assert again.tokenizer_sha256 == report.tokenizer_sha256 is not None
    kept = files(tmp_path / "again" / SOURCE_FOLDER)
    for name, data in files(source).items():
        if "tokenizer" in name or "template" in name:
            assert kept[name] == data
    # one tokenizer too few: the weights alone, and the report says so
    shutil.rmtree(tmp_path / "out")
    for path in source.glob("tokenizer*"):
        path.unlink()
    config = ImportConfig(source, tmp_path / "bare", tokenizer=False)
    import_checkpoint(config)
    flags: dict[str, Any] = {"format": "meta"}
    report = export_checkpoint(ExportConfig(tmp_path / "bare", tmp_path / "out", **flags))
    assert report.good_for == {"tokenizer": "none: the checkpoint was imported without one"}
    with pytest.raises(InputError, match=r"has no tokenizer\.json .*--no-tokenizer"):
        import_checkpoint(dataclasses.replace(config, src=tmp_path / "out", tokenizer=True))
