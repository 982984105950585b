import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from megatron_ultralong.data.tokenize.engines import choose_tokenizer
from megatron_ultralong.data.tokenize.tokenising import (
    HuggingFaceTokenizer,
    copy_tokenizer,
    separator_ids,
)
from megatron_ultralong.program.errors import InputError


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(tokenizer_folder)


HOSTILE = [
    "<|begin_of_text|>a<|end_of_text|>",
    "end.<s>Start",
    " " * 100_000,
    "a" * 20_000,
    "\x00\x00",
    "\u202e🙂\u0301\r\n",
]


def test_ids_are_those_of_the_plain_vocabulary(
    tokenizer: HuggingFaceTokenizer, reference: Tokenizer, library_files: list[Path]
) -> None:
    texts = [path.read_text() for path in library_files[20:30]] + HOSTILE
    for text, ids in zip(texts, tokenizer.encode_documents(texts), strict=True):
        assert ids.tolist() == reference.encode(text).ids
        assert reference.decode(ids.tolist()) == text  # nothing cut, no BOS, no EOS


def test_vocabulary_counts_added_tokens(tokenizer: HuggingFaceTokenizer) -> None:
    assert tokenizer.vocab_size == 1002
    assert tokenizer.encode_separator("<|end_of_text|>") == [1001]


def test_separator(tokenizer: HuggingFaceTokenizer, reference: Tokenizer) -> None:
    assert separator_ids(tokenizer, "<s>") == reference.encode("<s>").ids
    assert separator_ids(tokenizer, "eos") == [1001]
    assert separator_ids(tokenizer, "none") == separator_ids(tokenizer, "") == []
    # as text inside a document, it merges with its neighbours: hence ids, not text
    inside, before = (ids.tolist() for ids in tokenizer.encode_documents(["a <s>b", "a "]))
    joined = [*before, *separator_ids(tokenizer, "<s>")]
    assert inside[: len(joined)] != joined


def test_file_and_folder_give_the_same(tokenizer_folder: Path) -> None:
    folder = HuggingFaceTokenizer(tokenizer_folder)
    file = HuggingFaceTokenizer(tokenizer_folder / "tokenizer.json")
    assert (folder.sha256, folder.file) == (file.sha256, file.file)
    np.testing.assert_array_equal(folder.encode_documents(["a b"]), file.encode_documents(["a b"]))


def test_copy_has_the_same_hash(tokenizer: HuggingFaceTokenizer, tmp_path: Path) -> None:
    copy_tokenizer(tokenizer, tmp_path / "copy")
    assert HuggingFaceTokenizer(tmp_path / "copy").sha256 == tokenizer.sha256
    assert separator_ids(HuggingFaceTokenizer(tmp_path / "copy"), "eos") == [1001]


def test_bad_tokenizers(tmp_path: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        HuggingFaceTokenizer(tmp_path)
    data = (tokenizer_folder / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(data[:500])
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer: .* cut short"):
        HuggingFaceTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(data)
    with pytest.raises(InputError, match="names no eos_token"):
        separator_ids(HuggingFaceTokenizer(tmp_path), "eos")
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "<|end_of_text|>"}})
    )
    assert separator_ids(HuggingFaceTokenizer(tmp_path), "eos") == [1001]
    # added to a tokenizer that was saved elsewhere
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|added|>"}))
    with pytest.raises(InputError, match=r"'<\|added\|>', the EOS .* is no token of it, but \d of"):
        separator_ids(HuggingFaceTokenizer(tmp_path), "eos")


def test_merges_are_left_out_nowhere(tokenizer: HuggingFaceTokenizer, tmp_path: Path) -> None:
    data = json.loads(tokenizer.file.read_text())
    data["model"]["dropout"] = 0.5  # as files of models that were trained with it may have it
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    texts = ["def function(argument): return argument\n" * 20]
    for engine in ("auto", "reference"):
        found = choose_tokenizer(tmp_path, engine).tokenizer
        (ids,), (expected,) = found.encode_documents(texts), tokenizer.encode_documents(texts)
        assert ids.tolist() == expected.tolist()
