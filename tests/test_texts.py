"""A text is read as it was written: of a command line, and of a file with a byte order mark."""

from __future__ import annotations

import dataclasses
import os
import typing
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong import cli
from megatron_ultralong.data.read.record import read_named_text
from megatron_ultralong.program.errors import InputError, shown
from megatron_ultralong.program.fields import Text, flag_of, mark_of
from tests.edges import nested_classes, parse, parsed_class, with_needed

NAMES = {
    *("load", "save", "data_path", "output", "include_path", "data", "hardware"),
    *("source", "prompt_file", "haystack", "results", "model", "gpu", "engines"),
    *(
        "essays",
        "english_words",
        "word_lists",
        "hotpotqa",
        "squad",
        "length_levels",
        "length_tokenizer",
        "needle_set",
        "runs",
        "tasks",
        "suffixes",
    ),
}
"""Fields of files and folders, or of one of the names that are listed where another is refused."""
BROKEN = os.fsdecode(b"caf\xe9")


def texts(verb: str) -> dict[str, Any]:
    """Fields of a verb that are of type ``str``, and their types."""
    found: dict[str, Any] = {}
    for cls in nested_classes(parsed_class(verb)):
        hints = typing.get_type_hints(cls, include_extras=True)
        plain = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            kinds = {plain[field.name], *typing.get_args(plain[field.name])}
            if str in kinds:
                found[field.name] = hints[field.name]
    return found


@pytest.mark.parametrize("verb", cli.VERBS)
def test_a_flag_of_text_is_marked_and_checked(verb: str) -> None:
    """Other bytes than UTF-8 would be other characters to the model, and nobody would know."""
    for name, hint in texts(verb).items():
        if mark_of(hint, Text) is None:
            assert name in NAMES, f"{name}: mark it with TEXT, or list it here"
            continue
        flag = flag_of(name, hint)
        message = rf"^{flag} {shown(BROKEN)} is not UTF-8 at character 3, and is read as text: "
        for words in ([flag, BROKEN], [f"{flag}={BROKEN}"]):
            with pytest.raises(InputError, match=message.replace("\\", r"\\")):
                parse(verb, with_needed(verb, words))
        parse(verb, with_needed(verb, [flag, "café"]))


def test_some_are_texts() -> None:
    marked = {n for verb in cli.VERBS for n, hint in texts(verb).items() if mark_of(hint, Text)}
    assert {"prompt", "system", "separator", "system_instruction", "text_key"} <= marked


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """Editors of Windows put it first; in a prompt it would be tokens."""
    (tmp_path / "a.txt").write_bytes("\ufeffdef\r\n\ufeffx".encode())
    assert read_named_text("--prompt-file", str(tmp_path / "a.txt")) == "def\n\ufeffx"
