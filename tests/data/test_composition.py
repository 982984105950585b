"""A normalizer to NFC: the fast engine has the reference's ids, whatever Unicode each knows."""

import random
import sys
import unicodedata
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers

from megatron_ultralong.data.tokenize import unicode_versions
from megatron_ultralong.data.tokenize.engines import FastTokenizer, choose_tokenizer
from megatron_ultralong.data.tokenize.unicode_versions import has_unknown
from tests.models import write_tokenizer

NEW = ["\U00010f46", "\u089e", "\U0001e4ec", "\U00010efd", "\u1acf", "\U000105d2\u0307"]
"""Marks of Unicode 11 to 16, and letters that its version 16 composes."""
OLD = ["\u0327", "\u0301", "\u0323", "\u0338", "\u093c", "\u0655", "\u3099", "\u11a8"]
LETTERS = ["e", "E", "\u0928", "\u06d5", "\u304b", "\uac00", "\u212a", ">", " ", "\n", "\U0001f642"]
CODES = [code for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
MARKS = [
    chr(c)
    for c in CODES
    if unicodedata.category(chr(c)) in ("Mn", "Me") or c in range(0x10D40, 0x11600)
]


def texts(seed: int, count: int) -> list[str]:
    generator = random.Random(seed)
    pool = (NEW, OLD, LETTERS, LETTERS, MARKS, ["<tool>", "K>", "abc", "def f(x):"])
    return [
        "".join(generator.choice(generator.choice(pool)) for _ in range(generator.randint(1, 12)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "added"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("composing")
    write_tokenizer(folder)
    known = Tokenizer.from_file(str(folder / "tokenizer.json"))
    known.normalizer = normalizers.NFC()
    if request.param:
        known.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("K>")])
    known.save(str(folder / "tokenizer.json"))
    return folder


def test_ids_are_those_of_the_reference(tokenizer: Path) -> None:
    fast = choose_tokenizer(tokenizer, "gigatoken").tokenizer
    assert isinstance(fast, FastTokenizer)
    for behind in (False, True):
        some = texts(seed=behind, count=4000)
        encode = "encode_behind" if behind else "encode_documents"
        found, expected = (getattr(each, encode)(some) for each in (fast, fast.reference))
        for text, ids, its in zip(some, found, expected, strict=True):
            assert ids.tolist() == its.tolist(), [hex(ord(letter)) for letter in text]


def test_what_all_versions_know_is_composed_in_one_way() -> None:
    assert not has_unknown("a > b")
    assert not has_unknown("caf\xe9 \u0928\u093f cafe\u0301 \u212a")
    assert has_unknown("x\U0005ffff")  # a character of none of the versions
    assert has_unknown("\xe9" * unicode_versions.BLOCK + "\U0005ffff")
    for text in texts(seed=2, count=4000):
        if unicodedata.is_normalized("NFC", text) and not has_unknown(text):
            assert normalizers.NFC().normalize_str(text) == text, text
