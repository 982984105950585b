"""What is said of files and folders that are no tokenizer: what is wrong, and what to do."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.convert.early_checks import check_import
from megatron_ultralong.checkpoint.formats.tokenizer_files import load_fast
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.data.tokenize.engines import open_reference
from megatron_ultralong.program.errors import InputError

READERS = {"rows": open_reference, "checkpoints": load_fast}


@pytest.fixture(params=READERS.values(), ids=READERS)
def refused(request: pytest.FixtureRequest) -> Callable[[Path], str]:
    def message(path: Path) -> str:
        with pytest.raises(InputError) as error:
            request.param(path)
        return str(error.value)

    return message


@pytest.fixture
def data(tokenizer_folder: Path) -> bytes:
    return (tokenizer_folder / "tokenizer.json").read_bytes().rstrip()


def test_a_file_cut_anywhere_is_cut_short(
    refused: Callable[[Path], str], data: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "tokenizer.json"
    for end in {0, 1, 40, len(data) - 1, *range(7, len(data), len(data) // 20)}:
        file.write_bytes(data[:end])
        said = refused(file)
        assert said.startswith(f"{file} is not a tokenizer: ")
        assert said.endswith("; is it cut short?"), (end, said)


@pytest.mark.parametrize(
    "text", ['{\n "a": 1}', "[1]", "hello", '{"model_type": "qwen2"}', "\xe4 b"]
)
def test_a_whole_file_that_is_none_is_not_cut_short(
    refused: Callable[[Path], str], data: bytes, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "config.json"
    file.write_text(text, encoding="latin-1")
    reason = 'it is not written like a tokenizer.json, which has a "vocab"'
    assert refused(file) == f"{file} is not a tokenizer: {reason}"
    beside = tmp_path / "tokenizer.json"
    beside.write_bytes(data)
    said = f"and tokenizer.json is beside it: give {beside}, or its folder"
    assert refused(file) == f"{file} is not a tokenizer ({reason}), {said}"


def test_a_tokenizer_with_a_fault_is_told_by_the_library(
    refused: Callable[[Path], str], data: bytes, tmp_path: Path
) -> None:
    values = json.loads(data)
    values["model"]["merges"] = [["none", "such"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    said = refused(tmp_path / "tokenizer.json")
    assert "is not a tokenizer: Token `none` out of vocabulary" in said
    assert "cut short" not in said


def test_ranks_of_tiktoken(tmp_path: Path) -> None:
    lines = b"".join(b"YQ== %d\n" % number for number in range(9))
    for text, is_cut in ((lines + b"YQ=", True), (lines + b"YQ== x\n" + lines, False)):
        (tmp_path / "tokenizer.model").write_bytes(text)
        with pytest.raises(InputError, match=r"is not a tokenizer\.model of tiktoken") as error:
            open_reference(tmp_path)
        assert ("cut short" in str(error.value)) == is_cut


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    **dict.fromkeys(("hidden_size", "vocab_size", "intermediate_size"), 64),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_hidden_layers"), 2),
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("vocab.txt",), ("spiece.model",)])
def test_files_of_the_classes_in_python_are_named_with_the_line_that_converts_them(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for name in names:
        (tmp_path / name).write_text("{}")
    said = []
    for read in (open_reference, lambda folder: check_import(ImportConfig(folder, folder / "b"))):
        with pytest.raises(InputError) as error:
            read(tmp_path)
        said.append(str(error.value))
    verb = "are" if len(names) > 1 else "is"
    line = (
        f"has no tokenizer.json or tokenizer.model, and {' and '.join(names)} {verb} not read: "
        'write tokenizer.json with transformers: python -c "from transformers import AutoTokenizer;'
        f" AutoTokenizer.from_pretrained('{tmp_path}').save_pretrained('{tmp_path}')\""
    )
    assert said[0] == f"--tokenizer {tmp_path} {line}"
    assert said[1] == f"{tmp_path} {line}; or convert the weights alone with --no-tokenizer"
    if names[0].endswith("json"):
        with pytest.raises(InputError, match=r"vocab\.json and merges\.txt are not read: write"):
            open_reference(tmp_path / names[0])


def test_the_family_is_told_before_the_tokenizer(tmp_path: Path) -> None:
    other = {**CONFIG, "architectures": ["GemmaForCausalLM"], "model_type": "gemma"}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=re.escape("['GemmaForCausalLM'] is not supported")):
        check_import(ImportConfig(tmp_path, tmp_path / "b"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(InputError, match=r"has no tokenizer\.json .*; download the tokenizer too;"):
        check_import(ImportConfig(tmp_path, tmp_path / "b"))
