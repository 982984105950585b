"""Records of one file: JSONL, parquet or plain text, plain or compressed, streamed.

Nothing is raised for a bad record: it is yielded with its error, so that the caller decides
whether the run stops there or goes on with the next one.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

FileFormat = Literal["auto", "jsonl", "parquet", "text"]

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Compression by the last suffix of a file's name."""

FORMATS: dict[str, FileFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
"""Format by suffix, without that of the compression; any other file is one text document."""

PARQUET_BATCH_ROWS = 64
"""Rows decoded at a time: documents may be megabytes long."""


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


def read_records(
    path: Path,
    keys: tuple[str, ...],
    file_format: FileFormat,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Record]:
    """Records of a file; a text file is one record, whose text stands under ``keys[0]``.

    Args:
        path: the file; ``.gz`` and ``.zst`` are decompressed on the way.
        keys: top-level keys that are wanted; only these columns of a parquet file are read.
        file_format: ``auto`` goes by the name, see :data:`FORMATS`.
        start: of plain JSONL the first byte wanted: lines that begin before it are left out; of
            parquet the first row group wanted; 0 for any other file.
        stop: the byte or row group after the last one wanted; a line that begins before it is read
            to its end.
    """
    file_format = format_of(path, file_format)
    if file_format == "parquet":
        return _read_parquet(path, keys, start, stop)
    assert is_plain_jsonl(path, file_format) or (start == 0 and stop is None), (path, start, stop)
    if file_format == "jsonl":
        return _read_jsonl(path, start, stop)
    return _read_text(path, keys[0])


def format_of(path: Path, file_format: FileFormat) -> FileFormat:
    """The format itself, or under ``auto`` the one that the file's name stands for."""
    if file_format != "auto":
        return file_format
    return FORMATS.get(Path(uncompressed_name(path)).suffix.lower(), "text")


def is_plain_jsonl(path: Path, file_format: FileFormat) -> bool:
    """Whether parts of the file can be read without what stands before them."""
    return format_of(path, file_format) == "jsonl" and path.suffix.lower() not in COMPRESSIONS


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


def uncompressed_name(path: Path) -> str:
    """Name of a file without the suffix of its compression: ``a.jsonl.gz -> a.jsonl``."""
    return path.stem if path.suffix.lower() in COMPRESSIONS else path.name


def _read_text(path: Path, key: str) -> Iterator[Record]:
    size = file_size(path)
    try:
        with open(path, "rb") as raw:
            data = _decompressed(raw, path).read()
    except (OSError, pa.ArrowInvalid) as error:
        yield _unreadable(path, error)
        return
    try:
        yield Record(str(path), size, {key: data.decode("utf-8-sig")}, is_text_file=True)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        yield Record(f"{path}:{line}", size, {}, f"not UTF-8 ({error.reason})")


def _read_jsonl(path: Path, start: int, stop: int | None) -> Iterator[Record]:
    number = 0
    try:
        with open(path, "rb") as raw:
            first = start
            if start:  # the line that this byte is in belongs to the part before, unless it begins
                raw.seek(start - 1)
                first = start - 1 + len(raw.readline())
            position = first
            for number, line in enumerate(_decompressed(raw, path), start=1):
                if stop is not None and position >= stop:
                    return
                position += len(line)
                if line.strip():
                    at = (raw.tell() if stop is None else position) - start
                    yield _json_record(f"{path}:{number}", at, line)._replace(counted_from=first)
    except (OSError, pa.ArrowInvalid) as error:
        yield _unreadable(f"{path}:{number + 1}", error)


def _json_record(place: str, position: int, line: bytes) -> Record:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Record(place, position, {}, f"not UTF-8 ({error.reason})")
    except (json.JSONDecodeError, RecursionError) as error:
        return Record(place, position, {}, f"not JSON ({error}); is the file cut short?")
    if not isinstance(fields, dict):
        kind = type(fields).__name__
        return Record(place, position, {}, f"a {kind}, where one JSON object a line belongs")
    return Record(place, position, fields)


def _read_parquet(
    path: Path, keys: tuple[str, ...], start: int, stop: int | None
) -> Iterator[Record]:
    row = 0
    try:
        # small reads: by default a whole row group, it may be gigabytes, is held at once
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            sizes, rows = _row_groups(file.metadata)
            groups = range(start, len(sizes) if stop is None else stop)
            before = row = sum(rows[:start])
            size, num_rows = sum(sizes[i] for i in groups), sum(rows[i] for i in groups)
            columns = [key for key in keys if key in file.schema_arrow.names]
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, list(groups), columns):
                for fields in batch.to_pylist():
                    row += 1
                    yield Record(f"{path}:{row}", size * (row - before) // num_rows, fields)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        yield _unreadable(f"{path}:{row + 1}", error)


def row_group_sizes(path: Path) -> list[int]:
    """Bytes on disk of a parquet file's row groups, each readable without those before it.

    None where the file cannot be read: reading it says why.
    """
    with contextlib.suppress(OSError, pa.ArrowException):
        return _row_groups(pq.read_metadata(path))[0]
    return []


def _row_groups(metadata: Any) -> tuple[list[int], list[int]]:
    """Bytes on disk and rows of every row group."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    sizes = [sum(g.column(i).total_compressed_size for i in range(g.num_columns)) for g in groups]
    return sizes, [group.num_rows for group in groups]


def _decompressed(raw: io.BufferedReader, path: Path) -> io.BufferedReader:
    """The content of an open file; its truncation raises OSError."""
    codec = COMPRESSIONS.get(path.suffix.lower())
    if codec is None:
        return raw
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), codec), 1 << 20)


def _unreadable(place: Path | str, error: Exception) -> Record:
    return Record(str(place), 0, {}, f"cannot be read ({error}); is the file cut short?")


def file_size(path: Path) -> int:
    """Size of a file in bytes, 0 where it cannot be told (reading it says why)."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
