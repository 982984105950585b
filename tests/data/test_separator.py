"""Documents that hold the separator's ids: kept, dropped, or written in other ids."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.prepare.documents import prepare
from megatron_ultralong.data.read.options import ReadOptions
from megatron_ultralong.data.rows.manifest import Manifest
from megatron_ultralong.data.rows.packed import PackedRows
from megatron_ultralong.data.tokenize.tokenising import (
    HuggingFaceTokenizer,
    holds_separator,
    split_separators,
)
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.documents import document_boundaries


@pytest.mark.parametrize("separator", [(), (8,), (8, 9), (7, 7), (7, 8, 7)])
def test_a_document_holds_it_where_a_search_finds_more_than_its_end(separator) -> None:
    for length in range(1, 5):
        for tokens in itertools.product((7, 8, 9), repeat=length):
            closed = np.asarray([*tokens, *separator])
            ends = document_boundaries(closed, separator)[1:].tolist()
            expected = bool(separator) and ends != [closed.size]
            assert holds_separator(np.asarray(tokens), separator) == expected, tokens


def texts() -> list[str]:
    plain = [f"Document {number} of words" for number in range(12)]
    held = ["def it", "def", "at its end\ndef", "def\ndef\ndef thrice", "naïve\ndef 文章\n"]
    return [*plain, *held]


@pytest.fixture
def configured(config: PrepareConfig, tmp_path: Path) -> PrepareConfig:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts()))
    return dataclasses.replace(
        config,
        source=(f"a={tmp_path}/a.jsonl",),
        output=tmp_path / "rows",
        separator="def",
        seq_length=256,
        packing="whole",
        valid_fraction=0.0,
        reading=ReadOptions(),
    )


def documents(config: PrepareConfig, manifest: Manifest) -> list[list[int]]:
    rows, width = PackedRows(config.output / "train"), len(manifest.separator_ids)
    return [
        rows[number][start : stop - width].tolist()
        for number in range(len(rows))
        for start, stop in itertools.pairwise(rows.boundaries(number).tolist())
        if start < rows.num_real_tokens(number)
    ]


@pytest.mark.parametrize("treatment", ["keep", "drop", "split"])
def test_what_is_done_with_them(
    configured: PrepareConfig, treatment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(configured, separator_in_text=treatment)
    manifest = prepare(config)
    tokenizer = HuggingFaceTokenizer(config.tokenizer)
    found = documents(config, manifest)
    separator = manifest.separator_ids
    assert len(separator) == 1
    held = [tokens for tokens in found if holds_separator(np.asarray(tokens), separator)]
    expected = [t for t in texts() if treatment != "drop" or "def" not in t]
    assert sorted(map(tokenizer.decode, found)) == sorted(expected)
    assert manifest.separator_in_text == treatment
    num_held = manifest.num_documents_with_separator
    said = " ".join(capsys.readouterr().out.split())
    told = {"keep": "the document's end; to avoid", "drop": "left out", "split": "one by one"}
    assert told[treatment] in said
    text = f"the separator {config.separator!r} (ids {separator}) in the text itself: "
    assert f"{num_held} documents have {text}" in said
    if treatment == "keep":
        assert len(held) == num_held == 5
    else:
        assert (held, num_held) == ([], 5)
    stream = dataclasses.replace(manifest, packing="stream")
    assert stream.separators_tell_all == (treatment != "keep")


def test_a_separator_of_one_character_cannot_be_split(
    configured: PrepareConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(configured, separator="\n", separator_in_text="split")
    message = r"--separator-in-text split: .*no other ids .*--separator-in-text drop"
    with pytest.raises(InputError, match=message):
        prepare(config)
    assert not config.output.exists()


def test_a_separator_in_one_token_is_split_to_its_characters(tmp_path: Path) -> None:
    vocabulary = {character: number for number, character in enumerate("abc<s>Ġ")} | {"<s>": 9}
    merges = [("<", "s"), ("<s", ">")]
    tokenizer = Tokenizer(models.BPE({**vocabulary, "<s": 8}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    configured = HuggingFaceTokenizer(tmp_path)
    (tokens,) = configured.encode_documents(["a<s>b<s>"])
    assert tokens.tolist() == [0, 9, 1, 9]
    split = split_separators(tokens, [9], configured)
    assert split.tolist() == [0, 3, 4, 5, 1, 3, 4, 5]
    assert configured.decode(split.tolist()) == "a<s>b<s>"
