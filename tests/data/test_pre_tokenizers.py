"""Pre-tokenizers of all kinds: gigatoken has the reference's ids, or does not take them."""

import argparse
import ast
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, trainers
from tokenizers import pre_tokenizers as steps

from megatron_ultralong.data.tokenize.engines import FastTokenizer, open_reference
from megatron_ultralong.data.tokenize.fast_path import FastPathError
from megatron_ultralong.data.tokenize.tokenizer_model import PATTERN

SINGLE_DIGITS = PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return steps.Split(Regex(pattern), behavior, invert)


FIRST: dict[str, list[Any]] = {
    "llama": [split(PATTERN)],
    "qwen": [split(SINGLE_DIGITS)],
    "kept": [split(PATTERN, "removed", True)],
    "rest kept": [split(PATTERN, "removed")],
    "inside": [steps.Sequence([split(PATTERN)])],
    "two": [split(r"\p{N}{1,3}"), split(PATTERN)],
    "digits before": [steps.Digits(True), split(PATTERN)],
    "digits behind": [split(PATTERN), steps.Digits(True)],
    "signs": [split(PATTERN), steps.Punctuation()],
    "spaces": [split(PATTERN), steps.WhitespaceSplit()],
    "scripts": [split(PATTERN), steps.UnicodeScripts()],
    "other": [split(r"\s+", "merged_with_next")],
    "text before": [steps.Split("e", "isolated"), split(PATTERN)],
    "text behind": [split(PATTERN), steps.Split("e", "isolated")],
    "text": [steps.Split("e", "isolated")],
    "none": [],
}
"""What a text is cut by, one step behind the other."""
LAST: dict[str, list[Any]] = {
    f"{'prefix ' * prefix}{'pattern' * pattern}".strip() or "bytes": [
        steps.ByteLevel(add_prefix_space=prefix, use_regex=pattern)
    ]
    for prefix, pattern in itertools.product((False, True), repeat=2)
}
TAKEN = {("llama", "bytes"), ("qwen", "bytes"), ("kept", "bytes"), ("inside", "bytes")}
"""What models have, which the fast path must not lose."""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    source = Path(argparse.__file__).read_text() + Path(ast.__file__).read_text()
    other = "L'été, c'était 12,345.67 € — naïve façade; 汉字和假名。 Привет мир! don't we'LL\n"
    return [source[start : start + 500] for start in range(0, 60_000, 500)] + [other * 3]


@pytest.fixture(scope="module")
def model(texts: list[str]) -> dict[str, Any]:
    """A vocabulary whose tokens reach over words, signs and numbers: each cut shows."""
    tokenizer = Tokenizer(models.BPE())
    level = steps.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = steps.Sequence([split(r".{1,40}|\n+"), level])
    alphabet = steps.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found


@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize("first", FIRST)
def test_ids_are_those_of_the_reference(
    first: str, last: str, model: dict[str, Any], texts: list[str], tmp_path: Path
) -> None:
    cutter = Tokenizer(models.BPE())
    cutter.pre_tokenizer = steps.Sequence([*FIRST[first], *LAST[last]])
    cut = json.loads(cutter.to_str())["pre_tokenizer"]
    (tmp_path / "tokenizer.json").write_text(json.dumps({**model, "pre_tokenizer": cut}))
    try:
        fast = FastTokenizer(open_reference(tmp_path))
    except FastPathError:
        assert (first, last) not in TAKEN
        return
    fast.check(texts)
