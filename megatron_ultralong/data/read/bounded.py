"""Bytes and JSON in no more memory than stated, whatever a file holds.

A few megabytes of gzip may be one line of many gigabytes, and a line of JSON becomes up to thirty
times its size as objects. What is read is not trusted: both are limited before they are held.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_bounded

MAX_DOCUMENT_BYTES = 80 << 20
"""Of a line or a document, unless told otherwise: some 20 million tokens, five of the longest rows.

Its text takes four bytes a character where one of them is an emoji, and twice that while JSON is
read; gigatoken takes 6 bytes for one of ordinary text, 25 where each of them is a token. All is
under 2 GiB but the last, which is no language's.
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


def skip_line(file: BinaryIO, limit: int | None = None) -> int:
    """Pass over what is left of a line, at least up to ``limit`` bytes of it; returns their number.

    Args:
        file: an open file.
        limit: where to give up the search for the line's end; None: the end of the file.
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
    """A text file, its lines ended as Python ends them.

    Raises:
        InputError: there is none, or a larger one than :data:`MAX_DOCUMENT_BYTES`.
        UnicodeDecodeError: not UTF-8.
    """
    text = read_bounded(path, MAX_DOCUMENT_BYTES).decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_named_text(what: str, name: str) -> str:
    """The text file that a user names by ``what``, such as a flag.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return read_text(Path(name))
    except ValueError as error:
        raise InputError(
            f"{what} {name} cannot be read ({error}): name a text file in UTF-8"
        ) from error


def json_value(text: bytes) -> Any:
    """The value of a JSON text; integers of too many digits are :class:`LongInteger`.

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
        return json.loads(decoded)
    except RecursionError as error:
        raise TooLargeError("nested too deeply to be read") from error
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python's limit, which is no error of JSON's
        return json.loads(decoded, parse_int=_integer)


def value_error(value: Any) -> str:
    """Why a value of JSON cannot be worked on; empty where it can."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        if any(isinstance(inner, LongInteger) for inner in level):
            return f"an integer of more than {MAX_INTEGER_DIGITS:,} digits"
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return ""
    return f"values nested deeper than {MAX_DEPTH} levels"


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def bytes_outside_strings(text: bytes) -> int:
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
