"""Files that are compressed, by the last suffix of their names.

gzip, bzip2 and xz are read as their own programs read them: members one after the other are one
content, zeros behind the last one are padding. Whatever else stands there is an error, never
dropped in silence. What comes before an error is delivered.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".xz": "xz", ".bz2": "bzip2"}
"""Compression by the last suffix of a file's name."""

MAX_WINDOW_BYTES = 128 << 20
"""Of what a decompressor looks back at; zstd's library has the same limit."""

BLOCK = 1 << 16
CAREFUL_BYTES = 4096


class DamagedError(OSError):
    """Compressed bytes that cannot be read; the message says why, and the fix."""


def uncompressed_name(path: Path) -> str:
    """Name of a file without the suffix of its compression: ``a.jsonl.gz -> a.jsonl``."""
    return path.stem if path.suffix.lower() in COMPRESSIONS else path.name


def decompressed(raw: io.BufferedReader, path: Path) -> io.BufferedReader:
    """The content of an open file; reading it raises DamagedError where it is cut or damaged.

    The decompressor holds 32 KiB of gzip, 4 MiB of bzip2, at most :data:`MAX_WINDOW_BYTES` of xz
    and zstd.
    """
    name = COMPRESSIONS.get(path.suffix.lower())
    if name is None:
        return raw
    reader = _Frames(raw) if name == "zstd" else _Members(raw, name)
    return io.BufferedReader(reader, 1 << 20)


def compression_of(head: bytes) -> str:
    """The compression that a file's first bytes say; empty where they say none."""
    magic = {name: codec.magic for name, codec in _CODECS.items()} | {"zstd": _ZSTD}
    return next((name for name, first in magic.items() if head.startswith(first)), "")


_ZSTD = b"\x28\xb5\x2f\xfd"


class _Codec(NamedTuple):
    """How the members of one format are read."""

    start: Callable[[], Any]
    """A decompressor of one member."""
    program: str
    """Decompresses to standard output."""
    magic: bytes
    """First bytes of a member."""


_CODECS = {
    "gzip": _Codec(lambda: zlib.decompressobj(wbits=31), "gzip -dc", b"\x1f\x8b"),
    "bzip2": _Codec(bz2.BZ2Decompressor, "bzip2 -dc", b"BZh"),
    "xz": _Codec(
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW_BYTES + (1 << 20)),
        "xz -dc",
        b"\xfd7zXZ\0",
    ),
}


class _Members(io.RawIOBase):
    """The content of the members of a gzip, bzip2 or xz file, one after the other."""

    def __init__(self, raw: io.BufferedReader, name: str) -> None:
        self._raw, self._name, self._codec = raw, name, _CODECS[name]
        self._engine: Any = None
        self._input = b""
        self._num_read = self._num_members = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = len(buffer)
        while self._engine is not None or self._begins():
            is_end = False
            if not self._input and getattr(self._engine, "needs_input", True):
                is_end = not self._fill()
            data = self._decompress(size)
            if data:
                buffer[: len(data)] = data
                return len(data)
            if is_end and self._engine is not None:
                raise DamagedError(f"its {self._name} ends too early; is the file cut short?")
        return 0

    def _fill(self) -> bool:
        block = self._raw.read(BLOCK)
        self._input += block
        self._num_read += len(block)
        return bool(block)

    def _begins(self) -> bool:
        """Begin the next member; False at the end of the file."""
        name, program, magic = self._name, self._codec.program, self._codec.magic
        while len(self._input) < len(magic) and self._fill():
            if self._num_members:
                self._input = self._input.lstrip(b"\0")
        if self._input and not self._input.startswith(magic[: len(self._input)]):
            at = self._num_read - len(self._input)
            raise DamagedError(
                f"behind its last {name} member, at byte {at:,}, stand bytes that are none; write "
                f"it again with `{program}`"
                if self._num_members
                else f"it is not {name} by its first bytes; give it the name that it is"
            )
        if not self._input and not self._num_members:
            raise DamagedError(f"it is empty, which no {name} is; is the file cut short?")
        self._engine = self._codec.start() if self._input else None
        return self._engine is not None

    def _decompress(self, size: int) -> bytes:
        engine = self._engine
        try:
            data = bytes(engine.decompress(self._input, size))
        except (OSError, zlib.error, lzma.LZMAError) as error:
            raise DamagedError(self._reason(error)) from error
        if engine.eof:
            self._input, self._engine = engine.unused_data.lstrip(b"\0"), None
            self._num_members += 1
        else:
            self._input = getattr(engine, "unconsumed_tail", b"")
        return data

    def _reason(self, error: Exception) -> str:
        if "Memory usage limit" in str(error):
            return (
                f"its {self._name} looks back further than {MAX_WINDOW_BYTES >> 20} MiB, the most "
                f"that is read; decompress it with `{self._codec.program}` and give that"
            )
        return f"its {self._name} is damaged: {error}; copy it again"


class _Frames(io.RawIOBase):
    """The content of a zstd file.

    Arrow's stream gives nothing of a piece in which it meets an error. Then the file is opened
    again, and what stands before the error read in ever smaller pieces.
    """

    def __init__(self, raw: io.BufferedReader) -> None:
        self._raw = raw
        self._position = 0
        self._opened: list[Any] = []  # kept: one that is forgotten closes the file
        self._steps = [CAREFUL_BYTES, 1]
        self._step: int | None = None
        if not raw.peek(1):
            raise DamagedError("it is empty, which no zstd is; is the file cut short?")
        self._open()

    def _open(self) -> None:
        self._raw.seek(0)
        self._file = pa.CompressedInputStream(pa.PythonFile(self._raw, "r"), "zstd")
        self._opened.append(self._file)
        left = self._position
        while left and (data := self._file.read(min(left, 1 << 20))):
            left -= len(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            size = len(buffer) if self._step is None else min(self._step, len(buffer))
            try:
                data = self._file.read(size)
            except (OSError, pa.ArrowException) as error:
                if not self._steps:
                    raise DamagedError(self._reason(str(error))) from error
                self._step = self._steps.pop(0)
                self._open()
                continue
            buffer[: len(data)] = data
            self._position += len(data)
            return len(data)

    def _reason(self, text: str) -> str:
        if "requires too much memory" in text:  # zstd's words for a long window
            return (
                f"its zstd window is above {MAX_WINDOW_BYTES >> 20} MiB, the largest that is read; "
                "decompress it with `zstd -d --long=31` and give that, or compress it again"
            )
        if "Unknown frame descriptor" in text:
            if self._position:
                return "behind its last zstd frame stand bytes that are none; write it again"
            return "it is not zstd by its first bytes; give it the name that it is"
        if "Dictionary" in text:
            return (
                "its zstd was written with a dictionary, which is not in it; decompress it with "
                "`zstd -d -D DICTIONARY` and give that"
            )
        if "Truncated" in text:
            return "its zstd ends too early; is the file cut short?"
        return f"its zstd is damaged: {text}; copy it again"
