"""One record of a file, where it stands, and what makes its text unfit to be tokenised."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from megatron_ultralong.data.read.compression import DamagedError


class Record(NamedTuple):
    """One record of a file, or what is wrong with it."""

    place: str
    """``FILE`` or ``FILE:LINE``, for messages."""
    position: int
    """Bytes (as they lie on disk) read so far, of what was asked for."""
    fields: Mapping[str, Any]
    """Values by key."""
    error: str = ""
    """What is wrong; the fields are empty then."""
    is_text_file: bool = False
    """The record is a whole text file, which has no key but that of its text."""
    counted_from: int = 0
    """Byte of the file where the counting of lines began, see :func:`absolute_place`."""
    is_too_long: bool = False
    """The error is that the record is longer than the caller lets it be."""
    num_records: int = 1
    """Records that the error stands for: those behind it in a row group may be lost with it."""
    is_rest_lost: bool = False
    """What stands behind it in the file cannot be read either, and nobody knows how much it is."""
    keys: tuple[str, ...] = ()
    """Keys that the record has in its file, where its fields are fewer."""


def unreadable(place: Path | str, error: Exception) -> Record:
    """What stands for the records from here on, that a library cannot read."""
    reason = f"cannot be read ({error})"
    if not isinstance(error, DamagedError):
        reason += "; is the file cut short?"
    return Record(str(place), 0, {}, reason, is_rest_lost=True)


def absolute_place(record: Record) -> str:
    """``FILE:LINE`` counted from the file's start; reads what stands before the part, for messages.

    The lines before a part are only counted when there is something to say about one in it.
    """
    if not record.counted_from:
        return record.place
    path, _, number = record.place.rpartition(":")
    lines, left = int(number), record.counted_from
    with open(path, "rb") as file:
        while left and (block := file.read(min(left, 1 << 20))):
            lines += block.count(b"\n")
            left -= len(block)
    return f"{path}:{lines}"


LONG_RUN = 4 << 20
"""Characters of a run that no tokenizer cuts, such as a file of one letter.

All of them merge such a run as one piece, some microseconds and a hundred bytes a character: a run
of 96 million letters took 132 s and 2.5 GB.
"""

_WORD_OR_SPACE = re.compile(r"[^\W_]|\s")


def text_error(text: str) -> str:
    """What is wrong with a text; empty where nothing is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a lone surrogate at character {error.start}, which no UTF-8 text can hold"
    start = long_run(text)
    if start is not None:
        return (
            f"a run of more than {LONG_RUN // 2:,} letters, spaces or signs at character "
            f"{start:,} without anything between them, which tokenizers take as one piece"
        )
    return ""


def long_run(text: str) -> int | None:
    """A character in a run of letters, of white space or of signs alone; None where there is none.

    A run of :data:`LONG_RUN` is found for sure, one under half of it never: it is looked for in
    windows of half the length, each of which is left at the first character of another kind.
    """
    size = LONG_RUN // 2
    for start in range(0, len(text) - size + 1, size):
        window = text[start : start + size]
        if window.isalpha() or window.isspace() or not _WORD_OR_SPACE.search(window):
            return start
    return None
