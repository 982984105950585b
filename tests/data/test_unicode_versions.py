"""Characters that one library knows and another does not: ids are those of the reference."""

import itertools
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import regex
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from megatron_ultralong.data.tokenize import engines, tokenizer_model
from megatron_ultralong.data.tokenize.engines import FastTokenizer, open_reference
from megatron_ultralong.data.tokenize.fast_path import FastPathError, cuts_by_letters
from megatron_ultralong.data.tokenize.tokenizer_model import PATTERN, Llama3Tokenizer

PATTERNS = {
    "llama3": PATTERN,
    "cases": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt2": "",
}
"""As models cut a text: by letters, numbers and marks, and by the case of letters."""

NEW = "\u088f\u0c5c\ua7ce\U00010940\U000323b0\U00033479"
"""Letters of version 17 of Unicode."""

NEIGHBOURS = "aA1!' \n-_"


def known_codes() -> Iterator[int]:
    """All that Python knows; of the large scripts, which are alike, some."""
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) in ("Cn", "Cs"):
            continue
        is_large = code >= 0xE000 or 0x3400 <= code < 0xA000 or 0xAC00 <= code < 0xD7A4
        if not is_large or 0xF8FF < code < 0x20000 or code % 64 == 0:
            yield code


def write(folder: Path, pattern: str) -> Path:
    """A tokenizer whose tokens reach over the ends of characters, where no cut is between them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate(letters)}
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ((plain, _),) = level.pre_tokenize_str(NEIGHBOURS)
    others = [letter for letter in letters if not letter.isascii()]
    merges = [(a, b) for a in plain for b in (*others, *plain)]
    merges += [(a, b) for a in others for b in (*plain, *others)]
    for a, b in merges:
        vocab.setdefault(a + b, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    steps: pre_tokenizers.PreTokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        steps = pre_tokenizers.Sequence([split, level])
    tokenizer.pre_tokenizer = steps
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module", params=PATTERNS)
def fast(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FastTokenizer:
    folder = tmp_path_factory.mktemp("versions") / request.param
    return FastTokenizer(open_reference(write(folder, PATTERNS[request.param])))


def around(letter: str) -> str:
    among = "".join(f"{near}{letter}{near}" for near in NEIGHBOURS)
    return f"{among} {letter}{letter} 1{letter}12"


def test_every_known_character_has_the_ids_of_the_reference(fast: FastTokenizer) -> None:
    texts = [around(chr(code)) for code in known_codes()]
    assert len(texts) > 30_000
    fast.check(texts)


def test_new_characters_have_the_ids_of_the_reference(fast: FastTokenizer) -> None:
    texts = [around(letter) for letter in NEW]
    fast.check(texts)
    others = [fast._ids(text).tolist() for text in texts]
    expected = [ids.tolist() for ids in fast.reference.encode_documents(texts)]
    assert others != expected, "gigatoken alone has the same ids: this test shows nothing"


def test_new_signs_are_read_fast_with_the_ids_of_the_reference(fast: FastTokenizer) -> None:
    signs = regex.findall(r"[\p{S}\p{P}]", "".join(map(chr, range(0xE000, sys.maxunicode + 1))))
    new = [sign for sign in signs if unicodedata.category(sign) == "Cn"]
    assert len(new) > 100
    texts = [around(sign) for sign in new]
    assert not any(map(fast._has_unknown, texts))
    fast.check(texts)


@pytest.mark.parametrize("pattern", [r"\p{So}", r"\w+", r"[[:punct:]]", r"\p{Han}", r"\pL"])
def test_signs_count_where_a_pattern_asks_for_them(tmp_path: Path, pattern: str) -> None:
    folder = write(tmp_path / "asks", pattern + "|" + PATTERN)
    assert not cuts_by_letters((folder / "tokenizer.json").read_text())
    assert cuts_by_letters((write(tmp_path / "plain", PATTERN) / "tokenizer.json").read_text())


def test_a_text_too_long_for_the_reference_is_compared(
    fast: FastTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast.reference, "max_document_bytes", 100)
    monkeypatch.setattr(engines, "BLOCK", 64)
    for letter in "\U0005ffff\ufffe":  # of no version: nothing to any library
        text = "word 12 " * 50 + around(letter) + " more" * 50
        (ids,) = fast.encode_documents([text])
        assert ids.tolist() == fast.reference.encode_documents([text])[0].tolist()
    with pytest.raises(FastPathError, match="differ"):
        fast.encode_documents(["word 12 " * 50 + around(NEW[0]) + " more" * 50])


def test_a_long_text_is_compared_as_it_is_composed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "composed", PATTERN)
    known = Tokenizer.from_file(str(folder / "tokenizer.json"))
    known.normalizer = normalizers.NFC()
    known.save(str(folder / "tokenizer.json"))
    fast = FastTokenizer(open_reference(folder))
    monkeypatch.setattr(fast.reference, "max_document_bytes", 100)
    text = "cafe\u0301 " * 50 + "\ufffe"
    (ids,) = fast.encode_documents([text])
    assert ids.tolist() == fast.reference.encode_documents([text])[0].tolist()
    with pytest.raises(FastPathError, match="differ"):
        fast.encode_documents([text + "\U000105d2\u0307"])


def test_long_runs_are_cut_as_tiktoken_cuts(
    llama3: Llama3Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts with runs that its engine gives up on, which another one cuts."""
    new = sorted(tokenizer_model._stand_ins())[::8]
    codes = [*new, *map(ord, NEW), *itertools.islice(known_codes(), 0, None, 8)]
    assert new, "the two know the same letters: this test shows nothing"
    texts = [around(chr(code)) + f"12{chr(code)}345 {chr(code)}'s" for code in codes]
    expected = [ids.tolist() for ids in llama3.encode_documents(texts)]
    monkeypatch.setattr(tokenizer_model, "LONG_RUN", re.compile(""))
    found = [ids.tolist() for ids in llama3.encode_documents(texts)]
    for text, ids, its in zip(texts, found, expected, strict=True):
        assert ids == its, ascii(text)
