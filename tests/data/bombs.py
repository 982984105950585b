"""Inputs that are small on disk and become gigabytes where they are read without a limit."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

MIB = 1 << 20
GIB = 1 << 30


def repeated(head: bytes, unit: bytes, size: int, tail: bytes = b"") -> Iterator[bytes]:
    """Blocks of a text: ``unit`` again and again, ``size`` bytes in all."""
    block = unit * (MIB // len(unit))
    yield head
    yield from itertools.repeat(block, size // len(block))
    yield tail


def write_gzip(path: Path, blocks: Iterator[bytes]) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for block in blocks:
            file.write(block)


def write_repeated_gzip(path: Path, head: bytes, unit: bytes, size: int, tail: bytes = b"") -> None:
    """A gzip of gigabytes in no time: members of 64 MiB, one copied."""
    member = gzip.compress(unit * (64 * MIB // len(unit)), 6)
    with path.open("wb") as file:
        file.write(gzip.compress(head))
        for _ in range(size // (64 * MIB)):
            file.write(member)
        file.write(gzip.compress(tail))


def write_repeated_zstd(path: Path, head: bytes, unit: bytes, size: int, tail: bytes = b"") -> None:
    frame = pa.compress(unit * (64 * MIB // len(unit)), codec="zstd", asbytes=True)
    with path.open("wb") as file:
        file.write(pa.compress(head, codec="zstd", asbytes=True))
        for _ in range(size // (64 * MIB)):
            file.write(frame)
        file.write(pa.compress(tail, codec="zstd", asbytes=True))
