"""Which tokenizer reads the documents: by what the file holds, and by ``--tokenizer-engine``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

from megatron_ultralong.data.tokenize.fast_tokenizer import FastPathError, FastTokenizer
from megatron_ultralong.data.tokenize.llama3_tokenizer import Llama3Tokenizer
from megatron_ultralong.data.tokenize.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_ultralong.data.tokenize.tokenising import (
    DocumentTokenizer,
    HuggingFaceTokenizer,
    check_file_sizes,
)
from megatron_ultralong.program.errors import InputError, missing

TokenizerEngine = Literal["auto", "gigatoken", "reference"]

NAMES = ("tokenizer.json", "tokenizer.model")
"""What is looked for in a folder, in this order."""

TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


class ChosenTokenizer(NamedTuple):
    """A tokenizer and why it is this one."""

    tokenizer: DocumentTokenizer
    """The fast one, or the reference."""

    reason: str
    """Why the reference has to read the documents; empty for the fast one."""


def open_reference(path: Path) -> DocumentTokenizer:
    """The reference tokenizer of a file, or of a folder that holds one.

    ``tokenizer.json`` goes to tokenizers, Llama 3's ``tokenizer.model`` to tiktoken, any other
    model to sentencepiece.

    Raises:
        InputError: where there is none, or a broken one.
    """
    file = path
    if path.is_dir():
        found = [path / name for name in NAMES if (path / name).is_file()]
        file = found[0] if found else path
    if not path.exists():
        raise InputError(f"--tokenizer {missing(path)}")
    if not file.is_file():
        raise InputError(
            f"--tokenizer {path} has no {' or '.join(NAMES)}; give such a file or its folder"
        )
    check_file_sizes(file.parent)
    if file.suffix == ".json":
        return HuggingFaceTokenizer(file)
    with open(file, "rb") as opened:
        first = opened.readline(4096)
    if TIKTOKEN_LINE.fullmatch(first):
        return Llama3Tokenizer(file)
    return SentencePieceTokenizer(file)


def choose_tokenizer(path: Path, engine: TokenizerEngine) -> ChosenTokenizer:
    """The tokenizer of a file or folder under ``--tokenizer-engine``.

    ``auto`` takes the fast one where its ids are equal on probes, else the reference, and says why.

    Raises:
        InputError: as :func:`open_reference`, and where gigatoken is asked for and cannot be had.
    """
    reference = open_reference(path)
    if engine == "reference":
        return ChosenTokenizer(reference, "asked for")
    try:
        return ChosenTokenizer(FastTokenizer(reference), "")
    except FastPathError as error:
        require_fallback(engine, error)
        return ChosenTokenizer(reference, str(error))


def require_fallback(engine: TokenizerEngine, error: FastPathError) -> None:
    """Refuse to go on with the reference where gigatoken alone was asked for."""
    if engine == "gigatoken":
        raise InputError(
            f"--tokenizer-engine gigatoken: {error}; use auto, which takes the reference then"
        ) from error
