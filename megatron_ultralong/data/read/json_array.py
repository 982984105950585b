"""Elements of a file that is one JSON array, found without reading it whole.

Brackets, commas and quotes are looked at block by block, so that the time is linear in the file and
the memory is that of one element; what an element means is for JSON's own parser to say.
"""

import io
import itertools
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_ultralong.data.read.record import BLOCK

_STEPS: NDArray[np.int8] = np.zeros(256, np.int8)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1
_IS_SIGN: NDArray[np.bool_] = _STEPS != 0
_IS_SIGN[ord(",")] = True


class Element(NamedTuple):
    """One element of an array, or what is wrong there."""

    text: bytes | bytearray = b""
    """Its JSON; what stands between two commas may be none."""
    line: int = 1
    """Of the file, where it begins."""
    problem: str = ""
    is_too_long: bool = False
    """It is longer than the caller lets it be."""
    is_rest_lost: bool = False
    """The array cannot be read from here on."""


class _Ends:
    """Where elements end, in blocks of what stands behind the array's opening bracket."""

    def __init__(self) -> None:
        self.depth = self._is_inside = 0
        self._is_escaped = False

    @property
    def is_between(self) -> bool:
        """Nothing is open but the array."""
        return not self.depth and not self._is_inside

    def find(self, block: bytes) -> list[int]:
        """Places of the commas between elements and, as the last, of what closes the array."""
        plain = b"_" + block[1:] if self._is_escaped else block
        plain = plain.replace(rb"\\", b"__")
        self._is_escaped = plain.endswith(b"\\")
        signs = np.frombuffer(plain.replace(rb"\"", b"__"), np.uint8)
        # the sum wraps at 256, which is even
        inside = (np.cumsum(signs == ord('"'), dtype=np.uint8) + np.uint8(self._is_inside)) & 1
        self._is_inside = int(inside[-1])
        places = np.flatnonzero(_IS_SIGN[signs] & (inside == 0))
        steps = _STEPS[signs[places]]
        depths = self.depth + np.cumsum(steps, dtype=np.int64)
        if depths.size:
            self.depth = int(depths[-1])
        is_end = (depths < 0) | ((depths == 0) & (steps == 0))
        closing = np.flatnonzero(depths < 0)[:1]
        last = int(closing[0]) + 1 if closing.size else None
        return [int(place) for place in places[:last][is_end[:last]]]


def array_elements(file: io.BufferedReader, limit: int) -> Iterator[Element]:
    """Elements of an array in their order; one that is damaged may take those behind it along.

    Nothing of an element is held beyond ``limit`` bytes of it: it is passed over when the one
    behind it is asked for.

    Raises:
        OSError: the file cannot be read on.
    """
    head, line = b"", 1
    while len(head) < len(BOM_UTF8) and (block := file.read1(BLOCK)):
        head += block
    head = head.removeprefix(BOM_UTF8)
    while not head.strip():
        line += head.count(b"\n")
        if not (head := file.read1(BLOCK)):
            return
    start = head.lstrip()
    line += head.count(b"\n") - start.count(b"\n")
    if not start.startswith(b"["):
        yield Element(b"", line, "begins as no JSON array", is_rest_lost=True)
        return
    blocks = iter(lambda: file.read1(BLOCK), b"")
    yield from _behind_bracket(itertools.chain([start[1:]], blocks), limit, line)


def _behind_bracket(blocks: Iterator[bytes], limit: int, line: int) -> Iterator[Element]:
    ends, text, began, size, is_first = _Ends(), bytearray(), line, 0, True
    for block in filter(None, blocks):
        start = 0
        for end in [*ends.find(block), len(block)]:
            piece = block[start:end]
            line += piece.count(b"\n")
            if not size:
                piece = piece.lstrip()
                began = line - piece.count(b"\n")
            was_held, size = size <= limit, size + len(piece)
            if size <= limit:
                text += piece
            elif was_held:
                text = bytearray()
                what = f"a record of more than {limit:,} bytes, the longest that is read"
                yield Element(b"", began, what, is_too_long=True)
            if end == len(block):
                break
            sign, start = block[end : end + 1], end + 1
            if sign == b"}":
                what = f"a brace too many closes the array at line {line}: is a quote missing?"
                yield Element(b"", began, what, is_rest_lost=True)
                return
            is_empty_array = is_first and sign == b"]" and not text
            if size <= limit and not is_empty_array:
                yield Element(text, began)
            text, size, is_first = bytearray(), 0, False
            if sign == b"]":
                yield from _behind_array(itertools.chain([block[start:]], blocks), line)
                return
    if size <= limit and ends.is_between and text.rstrip().endswith(b"}"):
        yield Element(text, began)
    what = (
        f"the array does not end, and what is open begins at line {began}: is the file cut short, "
        "or a quote or bracket missing there?"
    )
    yield Element(b"", began, what, is_rest_lost=True)


def _behind_array(blocks: Iterator[bytes], line: int) -> Iterator[Element]:
    """What is said of bytes there; white space is none."""
    if any(block.strip() for block in blocks):
        what = (
            f"more stands behind the array, which ends at line {line}: of several arrays "
            "`jq -c '.[]' old.json > new.jsonl` writes a line for each record"
        )
        yield Element(b"", line, what, is_rest_lost=True)
