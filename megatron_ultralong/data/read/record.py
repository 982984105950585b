"""One record of a file: its bytes and JSON within bounds of memory, its text fit to be tokenised.

A few megabytes of gzip may be one line of many gigabytes, and a line of JSON becomes up to thirty
times its size as objects. What is read is not trusted: both are limited before they are held.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from megatron_ultralong.data.read.compression import DamagedError
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_bounded
from megatron_ultralong.program.streams import standard_input


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
    text_columns: tuple[str, ...] = ()
    """Those of ``keys`` that are columns of texts."""


class BadRecordError(Exception):
    """A record that cannot be used; ``reason`` says why."""

    @property
    def reason(self) -> str:
        """For messages."""
        return str(self)


def unreadable(place: Path | str, error: Exception) -> Record:
    """What stands for the records from here on, that a library cannot read."""
    of_system = error.strerror if isinstance(error, OSError) and error.errno else ""
    reason = f"cannot be read ({of_system or error})"
    if not of_system and not isinstance(error, DamagedError):
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


MAX_DOCUMENT_BYTES = 80 << 20
"""Of a line or a document by default: about 20 million tokens, five of the longest rows.

Its text takes four bytes a character where one of them is an emoji, and twice that while JSON is
read; gigatoken takes 6 bytes for one of ordinary text, 25 where each of them is a token. All is
under 2 GiB but the last, which is not a language's.
"""

MAX_JSON_BYTES = 16 << 20
"""Of one JSON value around its texts: brackets, numbers, commas; each may become 30 in memory."""

MAX_INTEGER_DIGITS = 4300
"""Python's own limit: reading a number takes time that is quadratic in its digits."""

BLOCK = 1 << 20

MAX_DEPTH = 64
"""Levels of what is worked on: what writes it as JSON calls itself for each."""


class TooLargeError(ValueError):
    """What is read is larger than it may be; the message says by what limit."""


class LongInteger:
    """Stands for an integer that was not read: it has too many digits."""


class TwoValues:
    """Stands for the values of a key that stands twice in one object: they are not the same."""


def skip_line(file: BinaryIO, limit: int | None = None) -> int:
    """Pass over what is left of a line, at least up to ``limit`` bytes of it; returns their number.

    There the search for the line's end is given up; None: at the end of the file.
    """
    size = 0
    while (limit is None or size < limit) and (block := file.readline(BLOCK)):
        size += len(block)
        if block.endswith(b"\n"):
            break
    return size


def read_whole(file: BinaryIO, limit: int) -> bytearray:
    """All that is left of a file.

    Raises:
        TooLargeError: that is more than ``limit`` bytes.
    """
    data = bytearray()
    while block := file.read(BLOCK):
        data += block
        if len(data) > limit:
            raise TooLargeError(f"more than {limit:,} bytes, the longest that is read")
    return data


def read_text(path: Path) -> str:
    """A text file without a byte order mark, its lines ended as Python ends them.

    Raises:
        InputError: there is none, or a larger one than :data:`MAX_DOCUMENT_BYTES`.
        UnicodeDecodeError: not UTF-8.
    """
    return _with_newlines(read_bounded(path, MAX_DOCUMENT_BYTES))


def _with_newlines(data: bytes) -> str:
    return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def read_named_text(what: str, name: str) -> str:
    """The text file that a user names by ``what``, such as a flag; ``-``: standard input.

    Raises:
        InputError: it cannot be read.
    """
    try:
        if name == "-":
            return _with_newlines(standard_input(f"{what} - (standard input)", MAX_DOCUMENT_BYTES))
        return read_text(Path(name))
    except InputError as error:  # it begins with the name
        if name == "-":
            raise
        raise InputError(f"{what} {error}: name a text file in UTF-8") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {name} is not UTF-8 ({error}): name a text file") from error


def json_value(text: bytes | bytearray) -> Any:
    """The value of a JSON text; integers of too many digits are :class:`LongInteger`, what stands
    under a key that an object has twice is :class:`TwoValues`.

    Raises:
        UnicodeDecodeError: not UTF-8.
        TooLargeError: more of it is around its texts than :data:`MAX_JSON_BYTES`, or it is nested
            too deeply.
        json.JSONDecodeError: not JSON.
    """
    if len(text) > MAX_JSON_BYTES and bytes_outside_strings(text) > MAX_JSON_BYTES:
        raise TooLargeError(
            f"more than {MAX_JSON_BYTES:,} bytes of JSON around its texts, the most that is read"
        )
    decoded = text.decode("utf-8-sig")
    try:
        return json.loads(decoded, object_pairs_hook=_object)
    except RecursionError as error:
        raise TooLargeError("nested too deeply to be read") from error
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python's limit, which is not an error of JSON's
        return json.loads(decoded, parse_int=_integer, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    found = {}
    for key, value in pairs:
        found[key] = value if found.get(key, value) == value else TwoValues()
    return found


def value_error(value: Any) -> str:
    """Why a value of JSON cannot be worked on; empty where it can."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        if any(isinstance(inner, LongInteger) for inner in level):
            return f"an integer of more than {MAX_INTEGER_DIGITS:,} digits"
        if any(isinstance(inner, TwoValues) for inner in level):
            return "two values: the key stands twice in one object, and other programs read either"
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return ""
    return f"values nested deeper than {MAX_DEPTH} levels"


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def bytes_outside_strings(text: bytes | bytearray) -> int:
    """Bytes of a JSON text that are in no string: ``b'{"a": "b,c"}' -> 6``, a quote each included.

    Never less than there are; a text that is not JSON has any number.
    """
    plain = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    total, is_inside = 0, 0
    for start in range(0, len(plain), BLOCK):
        part = np.frombuffer(plain, np.uint8, min(BLOCK, len(plain) - start), start)
        inside = (np.cumsum(part == ord('"'), dtype=np.uint8) + is_inside) & 1
        total += part.size - int(np.count_nonzero(inside))
        is_inside = int(inside[-1])
    return total


def _integer(digits: str) -> int | LongInteger:
    return int(digits) if len(digits) <= MAX_INTEGER_DIGITS else LongInteger()
