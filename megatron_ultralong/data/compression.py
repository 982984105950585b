"""Files that are compressed, by the last suffix of their names."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Compression by the last suffix of a file's name."""


def uncompressed_name(path: Path) -> str:
    """Name of a file without the suffix of its compression: ``a.jsonl.gz -> a.jsonl``."""
    return path.stem if path.suffix.lower() in COMPRESSIONS else path.name


def decompressed(raw: io.BufferedReader, path: Path) -> io.BufferedReader:
    """The content of an open file; its truncation raises OSError.

    The decompressor holds 32 KiB of gzip and at most 128 MiB of zstd, its library's own limit.
    """
    codec = COMPRESSIONS.get(path.suffix.lower())
    if codec is None:
        return raw
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), codec), 1 << 20)
