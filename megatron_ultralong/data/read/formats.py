"""Records of one file: JSONL, a JSON array, parquet or plain text, plain or compressed, streamed.

Nothing is raised for a bad record: it is yielded with its error, so that the caller decides
whether the run stops there or continues with the next one.

Elements of a JSON array are found without reading it whole: brackets, commas and quotes are looked
at block by block, so that the time is linear in the file and the memory is that of one element;
what an element means is for JSON's own parser to say.
"""

import io
import itertools
import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_ultralong.data.read import compression, parquet, record
from megatron_ultralong.data.read.options import FileFormat
from megatron_ultralong.program.errors import named

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
    while len(head) < len(BOM_UTF8) and (block := file.read1(record.BLOCK)):
        head += block
    head = head.removeprefix(BOM_UTF8)
    while not head.strip():
        line += head.count(b"\n")
        if not (head := file.read1(record.BLOCK)):
            return
    start = head.lstrip()
    line += head.count(b"\n") - start.count(b"\n")
    if not start.startswith(b"["):
        yield Element(b"", line, "begins as no JSON array", is_rest_lost=True)
        return
    blocks = iter(lambda: file.read1(record.BLOCK), b"")
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


def read_jsonl(
    path: Path, keys: tuple[str, ...], limit: int, start: int = 0, stop: int | None = None
) -> Iterator[record.Record]:
    """Records of a file; see :func:`~megatron_ultralong.data.read.formats.read_records`.

    What is left of a line that is too long is passed over, without being held, when the record
    after it is asked for.
    """
    number = 0
    try:
        with open(path, "rb") as raw:
            first = start
            if start:  # the line that this byte is in belongs to the part before, unless it begins
                raw.seek(start - 1)
                first = start - 1 + record.skip_line(raw, _until(stop, start - 1))
            file = compression.decompressed(raw, path)
            position = first
            while (stop is None or position < stop) and (line := file.readline(limit + 1)):
                number += 1
                place = f"{path}:{number}"
                position += len(line)
                at = (raw.tell() if stop is None else position) - start
                if len(line) > limit:
                    is_whole = line.endswith(b"\n")
                    line = b""  # not held while the caller looks at the record
                    error = f"a line of more than {limit:,} bytes, the longest that is read"
                    yield record.Record(place, at, {}, error, counted_from=first, is_too_long=True)
                    if not is_whole:
                        position += record.skip_line(file, _until(stop, position))
                elif line.strip():
                    found = _json_record(place, at, line, keys, partial(_not_json_line, line))
                    yield found._replace(counted_from=first)
    except OSError as error:
        yield record.unreadable(f"{path}:{number + 1}", error)


def _until(stop: int | None, position: int) -> int | None:
    """Bytes up to ``stop``: no line that begins behind it is wanted."""
    return None if stop is None else max(0, stop - position)


def _not_utf8(error: UnicodeDecodeError) -> str:
    return (
        f"not UTF-8 ({error.reason}): if it is Latin-1, convert it with `iconv -f LATIN1 -t UTF-8`"
    )


def _json_record(
    place: str,
    position: int,
    text: bytes | bytearray,
    keys: tuple[str, ...],
    not_json: Callable[[json.JSONDecodeError], str],
) -> record.Record:
    try:
        fields = record.json_value(text)
    except UnicodeDecodeError as error:
        return record.Record(place, position, {}, _not_utf8(error))
    except record.TooLargeError as error:
        return record.Record(place, position, {}, str(error))
    except json.JSONDecodeError as error:
        return record.Record(place, position, {}, f"not JSON ({not_json(error)}")
    if not isinstance(fields, dict):
        kind = named(type(fields).__name__)
        return record.Record(place, position, {}, f"{kind}, not one JSON object")
    for key in keys:
        if reason := record.value_error(fields.get(key)):
            return record.Record(place, position, {}, f"key {key!r} has {reason}")
    return record.Record(place, position, fields)


def _not_json_line(line: bytes, error: json.JSONDecodeError) -> str:
    column = min(error.pos, len(error.doc.rstrip())) + 1  # not of what stands behind the line
    return f"{_what(error)} at column {column:,}); {_cause(line, error)}"


def _what(error: json.JSONDecodeError) -> str:
    return error.msg.removesuffix(" at").removesuffix(" starting")


_NULS = "it holds NULs, as a file has that was not written to its end: copy it again"
_PYTHON = "it is written as Python writes a dict: write it with json.dumps"


def _cause(line: bytes, error: json.JSONDecodeError) -> str:
    """What may have made a line no JSON."""
    if b"\0" in line:
        return _NULS
    if b"\r" in line.strip():
        return "do its lines end in a carriage return alone? Convert it with `tr '\\r' '\\n'`"
    if line.lstrip().startswith(b"{'"):
        return _PYTHON
    if error.msg == "Extra data":
        return "one JSON object a line belongs here: write them so with `jq -c .`"
    if line.lstrip()[:1] not in b"{[":
        return "one JSON object a line belongs here"
    if not line.endswith(b"\n"):  # the last one
        return "is the file cut short?"
    if error.msg.startswith("Invalid control character"):
        if error.doc[error.pos :].strip():
            return "a tab in a text is written \\t: write it with json.dumps"
        return "is a quote missing? The end of a line in a text is written \\n"
    return "is a quote, comma or bracket missing there? Write it with json.dumps"


def _read_json_array(path: Path, keys: tuple[str, ...], limit: int) -> Iterator[record.Record]:
    """Records of an array, named by their numbers in it from 0 on, as ``jq '.[3]'`` does."""
    number = -1
    try:
        with open(path, "rb") as raw:
            for number, element in enumerate(
                array_elements(compression.decompressed(raw, path), limit)
            ):
                place, at = f"{path}[{number}]", raw.tell()
                if element.problem:
                    long, lost = element.is_too_long, element.is_rest_lost
                    yield record.Record(
                        place, at, {}, element.problem, is_too_long=long, is_rest_lost=lost
                    )
                else:
                    yield _json_record(place, at, element.text, keys, partial(_not_json, element))
    except OSError as error:
        yield record.unreadable(f"{path}[{number + 1}]", error)


def _not_json(element: Element, error: json.JSONDecodeError) -> str:
    if not element.text.strip():
        cause = "nothing stands before or behind a comma: remove it"
    elif b"\0" in element.text:
        cause = _NULS
    elif error.msg == "Extra data":
        cause = "is a comma missing?"
    else:
        cause = _PYTHON if element.text.startswith(b"{'") else "is a quote or bracket missing?"
    return f"{_what(error)} at line {element.line + error.lineno - 1}); {cause}"


def read_records(
    path: Path,
    keys: tuple[str, ...],
    file_format: FileFormat,
    start: int = 0,
    stop: int | None = None,
    limit: int = record.MAX_DOCUMENT_BYTES,
) -> Iterator[record.Record]:
    """Records of a file; a text file is one record, whose text stands under ``keys[0]``.

    Args:
        path: the file; what its last suffix says of a compression is undone on the way.
        keys: top-level keys that are wanted; only these columns of a parquet file are read.
        file_format: of the file, never ``auto``.
        start: of plain JSONL the first byte wanted: lines that begin before it are left out; of
            parquet the first row group wanted; 0 for any other file.
        stop: the byte or row group after the last one wanted; a line that begins before it is read
            to its end.
        limit: bytes of a record at most: of a line, an array's element, a text, the texts of a
            row; a longer one is yielded as an error, and never held.
    """
    if file_format == "parquet":
        return parquet.read_parquet(path, keys, limit, start, stop)
    assert is_plain_jsonl(path, file_format) or (start == 0 and stop is None), (path, start, stop)
    if file_format == "jsonl":
        return read_jsonl(path, keys, limit, start, stop)
    if file_format == "json":
        return _read_json_array(path, keys, limit)
    return _read_text(path, keys[0], limit)


def is_plain_jsonl(path: Path, file_format: FileFormat) -> bool:
    """Whether parts of the file can be read without what stands before them."""
    return file_format == "jsonl" and path.suffix.lower() not in compression.COMPRESSIONS


def _read_text(path: Path, key: str, limit: int) -> Iterator[record.Record]:
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "rb") as raw:
            data = record.read_whole(compression.decompressed(raw, path), limit)
    except record.TooLargeError as error:
        yield record.Record(str(path), size, {}, str(error), is_too_long=True)
        return
    except OSError as error:
        yield record.unreadable(path, error)
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        yield record.Record(f"{path}:{line}", size, {}, _not_utf8(error))
        return
    del data
    yield record.Record(str(path), size, {key: text}, is_text_file=True)
