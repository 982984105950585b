"""Tokens that were added to a vocabulary: the fast engine finds them where the reference does."""

from __future__ import annotations

import io
import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import AutoTokenizer

from megatron_ultralong.data.tokenize.engines import choose_tokenizer
from megatron_ultralong.program.errors import InputError
from tests.models import write_tokenizer

TOKENS = (
    ["def", "return"],
    ["caf\u00e9"],
    ["cafe\u0301"],
    ["  ", "\n\n"],
    ["<tool>", "<tool>x", "<to"],
    ["\ufb01", "\u00bd"],
)
FLAGS: tuple[dict[str, bool], ...] = (
    {},
    {"single_word": True},
    {"lstrip": True},
    {"rstrip": True},
    {"normalized": False},
    {"normalized": True},
)
WORDS = [
    *("def", "f(x):", "return", "x", "1", "\n", "  ", "    ", "<tool>", "<tool>x", "<to", "class"),
    *("caf\u00e9", "cafe\u0301", "\ufb01", "\u00bd", "fi", "\u2581", "\U0001f642", "re", "turn"),
]


def texts() -> list[str]:
    generator = random.Random(3)
    many = generator.choices([f"{a}{b}" for a in WORDS for b in ("", "", " ")], k=20)
    return ["".join(generator.sample(many, 12)) for _ in range(150)] + WORDS


@pytest.mark.parametrize(
    ("normalizer", "least"), [(None, 5), (normalizers.NFC(), 5), (normalizers.NFKC(), 0)]
)
def test_added_tokens_are_found_as_the_library_finds_them(
    tmp_path: Path, normalizer: Any, least: int
) -> None:
    num_fast = 0
    for flags in FLAGS:
        for number, tokens in enumerate(TOKENS):
            folder = tmp_path / f"{number}{flags}"
            write_tokenizer(folder)
            known = Tokenizer.from_file(str(folder / "tokenizer.json"))
            if normalizer is not None:
                known.normalizer = normalizer
            known.add_tokens([AddedToken(token, **flags) for token in tokens])
            known.save(str(folder / "tokenizer.json"))
            chosen = choose_tokenizer(folder, "auto")
            num_fast += not chosen.reason
            for text, ids in zip(texts(), chosen.tokenizer.encode_documents(texts()), strict=True):
                assert ids.tolist() == known.encode(text).ids, (flags, tokens, text)
    assert num_fast >= least  # so many the fast engine has to take


def sentencepiece_file(path: Path, **options: Any) -> Path:
    model = io.BytesIO()
    values: dict[str, Any] = {
        "vocab_size": 330,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        **options,
    }
    sentences = iter(["def f(x): return x hello world this is text"] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=model, **values
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({}, []),
        ({"control_symbols": ["<tool>"]}, []),
        ({"user_defined_symbols": ["<tool>", "return", "\u2581\u2581"]}, None),
        ({"user_defined_symbols": ["caf\u00e9"], "control_symbols": ["<to"]}, None),
        ({"user_defined_symbols": ["\n"], "split_digits": True}, None),
        ({"allow_whitespace_only_pieces": True}, []),
    ],
    ids=json.dumps,
)
def test_symbols_of_a_sentencepiece_model(
    tmp_path: Path, options: dict[str, Any], added: list[str] | None
) -> None:
    file = sentencepiece_file(tmp_path / "tokenizer.model", **options)
    chosen = choose_tokenizer(file, "auto")
    expected = options.get("user_defined_symbols", []) if added is None else added
    assert sorted(chosen.tokenizer.added_texts) == sorted(expected)
    assert bool(chosen.reason) >= bool(expected)
    judge = sentencepiece.SentencePieceProcessor(model_file=str(file))
    for text, ids in zip(texts(), chosen.tokenizer.encode_documents(texts()), strict=True):
        assert ids.tolist() == judge.encode(text), text


def token(text: str, **changes: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), False)
    return {"content": text, **flags, **changes}


CONFIG, ADDED, NAMES = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
BESIDE: list[tuple[dict[str, Any], bool]] = [
    ({CONFIG: {"added_tokens_decoder": {"320": token("<tool>"), "321": token("return")}}}, True),
    ({ADDED: {"<tool>": 320}}, True),
    ({ADDED: {"<tool>": 320}, CONFIG: {"added_tokens_decoder": {}}}, False),  # read since 4.34
    ({CONFIG: {"added_tokens_decoder": {"320": token("<tool>", special=True)}}}, False),
    ({CONFIG: {"added_tokens_decoder": {"0": token("known")}}}, False),
    ({ADDED: {"<tool>": 320}, NAMES: {"pad_token": "<tool>"}}, False),
    ({ADDED: {"<tool>": 320}, CONFIG: {"extra_special_tokens": ["<tool>"]}}, False),
    ({ADDED: {"<tool>": 320}, NAMES: {"additional_special_tokens": [token("<tool>")]}}, False),
    ({ADDED: {"known": 320}}, False),
]


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize(("files", "is_refused"), BESIDE, ids=json.dumps)
def test_tokens_that_a_file_beside_the_tokenizer_adds_are_not_lost(
    tmp_path: Path, files: dict[str, Any], is_refused: bool, file: str
) -> None:
    """transformers finds them in texts; the command of the message makes both agree."""
    if file == "tokenizer.json":
        write_tokenizer(tmp_path)
        tokenizer = Tokenizer.from_file(str(tmp_path / file))
        tokenizer.add_tokens([AddedToken("known")])
        tokenizer.save(str(tmp_path / file))
    else:
        sentencepiece_file(tmp_path / file, user_defined_symbols=["known"])
    fast = {"tokenizer_class": "PreTrainedTokenizerFast"} if file == "tokenizer.json" else {}
    for name, values in {CONFIG: {}, **files}.items():
        (tmp_path / name).write_text(json.dumps({**fast, **values} if name == CONFIG else values))
    if not is_refused:
        choose_tokenizer(tmp_path, "auto")
        return
    with pytest.raises(InputError, match=f"adds .* such as '<tool>', to {file}, which") as caught:
        choose_tokenizer(tmp_path, "auto")
    if file == "tokenizer.model":
        return
    _, *words = shlex.split(re.split("with them: ", str(caught.value))[1])
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    tokenizer = choose_tokenizer(tmp_path, "auto").tokenizer
    judge = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["def <tool>(x)<tool>:", "a <tool> return known"]
    for text, ids in zip(texts, tokenizer.encode_documents(texts), strict=True):
        assert ids.tolist() == judge.encode(text, add_special_tokens=False)
