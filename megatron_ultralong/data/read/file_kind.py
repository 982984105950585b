"""What a file of documents is: by its name, and by what stands at its beginning.

A name may lie: ``.json`` is JSON lines as often as one array, and a download may have left a
pointer, an archive or a page of HTML under the name of the data. What is read wrongly is learnt.
"""

import contextlib
import io
import json
import re
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any, NamedTuple

from megatron_ultralong.data.read import compression, file_names, near_json, record, signatures
from megatron_ultralong.data.read.options import FileFormat

FORMATS: dict[str, FileFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
"""Format by suffix, without that of the compression."""

HEAD_BYTES = 1 << 16
"""What is looked at."""

MAX_LINES = 20
"""Lines that are parsed to tell JSON lines from text."""

_AS_TEXT = near_json.AS_TEXT
_PAGE = "begins as HTML or XML: a page that tells of an error, saved instead of the data?"
_CARRIAGE = (
    "has lines that end in a carriage return alone: convert it with `tr '\\r' '\\n'`; " + _AS_TEXT
)
_BEGINS_AS_JSON = re.compile(rb"\s*(?:\[\s*)?\{\s*(?:\"[^\"\\\n]*\"\s*:|\"[^\"\\\n]*$|$)")
_OPENS = re.compile(rb"\s*[\[{]\s*")
_ARRAY = re.compile(rb"\s*\[\s*(?:\{|\]\s*$|$)")
_WRAPPED = re.compile(rb"\s*\{\s*\"([^\"\\\n]*)\"\s*:\s*\[\s*\{")
_WRAPPERS = "data", "train", "rows", "records", "examples", "samples", "instances", "items"
"""Keys under which a file's records stand, where one value is all of it."""


class FileKind(NamedTuple):
    """How a file is to be read."""

    file_format: FileFormat
    """Never ``auto``."""
    problem: str = ""
    """Why it is not read, and the fix."""
    is_known: bool = True
    """Its suffix, or what stands in it, says what it is."""


def suffix_of(path: Path) -> str:
    """The suffix below that of a compression: ``a.JSON.gz -> .json``; a dot-file has none."""
    return Path(compression.uncompressed_name(path)).suffix.lower()


def is_known_name(path: Path) -> bool:
    """Whether a name says what its file is."""
    suffix, name = suffix_of(path), compression.uncompressed_name(path).lower()
    known = file_names.TEXT_SUFFIXES | {".json", *FORMATS}
    return suffix in known or name in file_names.TEXT_NAMES


def file_kind(path: Path, file_format: FileFormat) -> FileKind:
    """What a file is; its beginning is looked at under ``auto``.

    A file that cannot be opened or decompressed is what its name says: reading it says why not.
    """
    if file_format != "auto":
        return FileKind(file_format)
    suffix = suffix_of(path)
    by_name = FORMATS.get(suffix, "text")
    compressed = compression.COMPRESSIONS.get(path.suffix.lower(), "")
    try:
        with open(path, "rb") as raw:
            start = raw.peek(512)[:512]
            head, is_whole = _beginning(raw, path)
    except compression.DamagedError:  # a download may have left something else
        as_named = compression.compression_of(start) == compressed  # then reading it says so
        problem = "" if as_named else _download_problem(start)
        return FileKind("jsonl" if suffix == ".json" else by_name, problem)
    except OSError as error:
        return FileKind(by_name, f"cannot be read ({error.strerror}): copy it again")
    if by_name == "parquet":
        return FileKind(by_name, _parquet_problem(compressed, head))
    by_suffix = file_names.UNREAD_SUFFIXES.get(suffix, "")
    inner = compression.compression_of(head)
    twice = f"is {inner} inside {compressed}: decompress it once" if compressed and inner else ""
    problem = twice or signatures.signature_problem(head) or by_suffix
    if problem:
        return FileKind(by_name, problem)
    head = head.removeprefix(BOM_UTF8)
    near = near_json.record_problem(_unpacked(path), head, is_whole)
    if suffix == ".json" or by_name == "jsonl":
        if _ARRAY.match(head) and not near:
            return FileKind("json", _array_problem(path, head))
        return FileKind("jsonl", near or _json_problem(path, suffix, head, is_whole))
    return _kind_of_text(path, head, is_whole, near)


def _kind_of_text(path: Path, head: bytes, is_whole: bool, near: str) -> FileKind:
    """Of a file whose name says neither JSON nor parquet; ``near`` is what is wrong with it."""
    suffix, is_known = suffix_of(path), is_known_name(path)
    if b"\0" in head:
        return FileKind("text", nul_problem(head.index(b"\0")), is_known)
    if _holds_json_lines(head, is_whole):
        return FileKind("jsonl")
    if is_known and suffix not in file_names.PLAIN_SUFFIXES:
        return FileKind("text")
    if near:
        return FileKind("text", near, is_known)
    if _ARRAY.match(head) and (_BEGINS_AS_JSON.match(head) or _value(head) == []):
        return FileKind("json", _array_problem(path, head))
    return FileKind("text", _text_problem(path, head, is_whole), is_known)


def _beginning(raw: io.BufferedReader, path: Path) -> tuple[bytes, bool]:
    """The first bytes of an open file, up to damage if any come before, and whether they are all.

    Raises:
        OSError: there are none.
    """
    file, head = compression.decompressed(raw, path), b""
    try:
        while len(head) <= HEAD_BYTES and (block := file.read1(HEAD_BYTES + 1 - len(head))):
            head += block
    except compression.DamagedError:
        if not head:
            raise
        return head, False
    return head, len(head) <= HEAD_BYTES


def nul_problem(at: int) -> str:
    """Of a text with a NUL at this byte or character."""
    return f"holds a NUL at {at:,}, which no text does: is it binary? If it is text, {_AS_TEXT}"


def _download_problem(head: bytes) -> str:
    """Of a file that is not even what its last suffix says."""
    is_page = head.lstrip()[:1] == b"<"
    return signatures.signature_problem(head) or (_PAGE if is_page else "")


def _parquet_problem(compressed: str, head: bytes) -> str:
    if compressed:
        return f"is parquet inside {compressed}: decompress it"
    return "" if head.startswith(b"PAR1") else _download_problem(head)


def _json_problem(path: Path, suffix: str, head: bytes, is_whole: bool) -> str:
    """What is wrong with a file that JSON lines are expected in; they tell of bad ones."""
    start = head.lstrip()[:1]
    if start == b"<":
        return _PAGE
    if start == b"\0":
        return nul_problem(0)
    is_wrapped = suffix == ".json" and _is_wrapped(head, is_whole)
    if start == b"[" or is_wrapped or _is_spread(head, is_whole):
        return _value_problem(path, head)
    if b"\r" in head.strip() and b"\n" not in head:
        return _CARRIAGE
    if suffix == ".json" and start not in (b"{", b""):
        return f"is neither JSON nor JSON lines: give it the suffix of what it is, or {_AS_TEXT}"
    return ""


def _text_problem(path: Path, head: bytes, is_whole: bool) -> str:
    """What is wrong with a file that is to be one text."""
    if b"\n" not in head and _holds_json_lines(head.replace(b"\r", b"\n"), is_whole):
        return _CARRIAGE
    if _BEGINS_AS_JSON.match(head) or (is_whole and isinstance(_value(head), dict | list)):
        return _value_problem(path, head)
    return near_json.table_problem(_unpacked(path), head, is_whole)


def _unpacked(path: Path) -> str:
    """A file as commands name it, which read it once it is decompressed."""
    return str(path.with_name(compression.uncompressed_name(path)))


def _value_problem(path: Path, head: bytes) -> str:
    name = _unpacked(path)
    wrapped = _WRAPPED.match(head)
    if head.lstrip()[:1] == b"[":
        what, query = "a JSON array of what are no objects", ".[] | {text: .}"
    elif wrapped:
        key = wrapped[1].decode(errors="replace")
        what, query = f"one JSON object with its records under {key!r}", f".[{json.dumps(key)}][]"
    else:
        what, query = "JSON over several lines a value", "."
    return near_json.to_lines(what, query, name)


def _array_problem(path: Path, head: bytes) -> str:
    """Of a file whose lines are arrays: the records may be they or what stands in them."""
    first, newline, rest = head.strip().partition(b"\n")
    if not newline or not rest.lstrip().startswith(b"[") or not isinstance(_value(first), list):
        return ""
    name = _unpacked(path)
    return near_json.to_lines("an array on each line", ".[]", name)


def _is_spread(head: bytes, is_whole: bool) -> bool:
    """Whether a file is values of JSON, one or more, each of them spread over lines."""
    first, newline, _ = head.strip().partition(b"\n")
    if not newline or isinstance(_value(first), dict):
        return False
    if not is_whole:
        return bool(_OPENS.fullmatch(first))
    with contextlib.suppress(ValueError, RecursionError):
        text = head.decode().lstrip()
        value, end = json.JSONDecoder().raw_decode(text)
        return isinstance(value, dict) and "\n" in text[:end]
    return False


def _is_wrapped(head: bytes, is_whole: bool) -> bool:
    """Whether a file is one line with its records under a key that is no record's."""
    found, lines = _WRAPPED.match(head), head.strip().splitlines()
    if not found or found[1].decode(errors="replace") not in _WRAPPERS:
        return False
    value = _value(lines[0])
    if isinstance(value, dict):
        return len(lines) == 1 and len(value) == 1
    return not is_whole and len(lines) == 1


def _holds_json_lines(head: bytes, is_whole: bool) -> bool:
    """Whether the first lines are JSON objects, except for fewer than half of them."""
    lines = head.split(b"\n")
    if not is_whole:
        if len(lines) == 1:  # one line that does not end here
            return bool(_BEGINS_AS_JSON.match(head)) and head.lstrip().startswith(b"{")
        lines.pop()
    lines = [line for line in lines if line.strip()][:MAX_LINES]
    if lines and _OPENS.fullmatch(lines[0]):
        return False
    found = sum(line.lstrip().startswith(b"{") and isinstance(_value(line), dict) for line in lines)
    return len(lines) < 2 * found


def _value(text: bytes) -> Any:
    try:
        return record.json_value(text)
    except (json.JSONDecodeError, UnicodeDecodeError, record.TooLargeError):
        return None
