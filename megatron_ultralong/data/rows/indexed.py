r"""Megatron's indexed dataset, ``PREFIX.bin`` and ``PREFIX.idx``: writer and memory-mapped reader.

``.bin``: the tokens of all sequences, one after the other. ``.idx``: ``MMIDIDX\0\0``, u64 version
1, u8 dtype (4 int32, 8 uint16), u64 sequences, u64 documents + 1, int32 lengths, int64 byte
offsets, int64 first sequence of every document and the end. Here a document is one sequence.
``.crc32``, which Megatron does not know: the CRC-32 of every sequence's bytes, u32.
"""

import array
import contextlib
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.program.aside import whole
from megatron_ultralong.program.errors import InputError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<QBQQ")
DTYPES: dict[int, np.dtype[np.integer]] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
SUFFIXES = ("bin", "idx", "crc32")
CODES = {dtype: code for code, dtype in DTYPES.items()}

TokenArray = npt.NDArray[np.int32] | npt.NDArray[np.uint16]


def token_dtype(vocab_size: int) -> np.dtype[np.integer]:
    """Megatron's rule for the type on disk: uint16 under 65,500 ids, int32 from there on."""
    return DTYPES[8] if vocab_size < 65500 else DTYPES[4]


class IndexedWriter(contextlib.ExitStack):
    """Writes sequences one by one; the files get their names when the block ends without error.

    ``with IndexedWriter(prefix, token_dtype(vocab_size)) as writer: writer.add(tokens)``
    """

    def __init__(self, prefix: Path, dtype: np.dtype[np.integer]) -> None:
        super().__init__()
        self.dtype = dtype
        self._lengths = array.array("i")
        self._checksums: list[int] = []
        self._aside = {s: self.enter_context(whole(Path(f"{prefix}.{s}"))) for s in SUFFIXES}
        self._bin = self.enter_context(self._aside["bin"].open("wb"))
        self.push(self._finish)

    def add(self, tokens: npt.NDArray[np.integer]) -> None:
        """Write one sequence, shape [length], of at least one token."""
        assert tokens.ndim == 1, tokens.shape
        assert tokens.size > 0, "an empty sequence"
        limits = np.iinfo(self.dtype)
        assert limits.min <= tokens.min() <= tokens.max() <= limits.max, (self.dtype, tokens.max())
        data = np.ascontiguousarray(tokens, dtype=self.dtype).data
        self._bin.write(data)
        self._lengths.append(tokens.size)
        self._checksums.append(zlib.crc32(data))

    def _finish(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            return
        self._aside["crc32"].write_bytes(np.asarray(self._checksums, dtype="<u4").data)
        lengths = np.asarray(self._lengths, dtype="<i4")
        ends = np.cumsum(lengths, dtype="<i8") * self.dtype.itemsize
        offsets = np.concatenate([np.zeros(1, dtype="<i8"), ends])[: lengths.size]
        with open(self._aside["idx"], "wb") as file:
            file.write(MAGIC)
            file.write(HEADER.pack(1, CODES[self.dtype], lengths.size, lengths.size + 1))
            file.write(lengths.data)
            file.write(offsets.astype("<i8").data)
            file.write(np.arange(lengths.size + 1, dtype="<i8").data)


class IndexedReader:
    """Sequences of ``PREFIX.bin`` and ``PREFIX.idx``, mapped into memory: ``reader[i] -> tokens``.

    Raises:
        InputError: where a file is missing, of another format or not of the size that it states.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = prefix
        index = self._map("idx", np.dtype(np.uint8))
        start = len(MAGIC) + HEADER.size
        if index.size < start or index[: len(MAGIC)].tobytes() != MAGIC:
            raise InputError(
                f"{prefix}.idx is not a Megatron index: it does not begin with {MAGIC!r}; give the "
                "path without .idx, as `prepare` or Megatron's preprocess_data.py wrote it"
            )
        version, code, num_sequences, num_documents = HEADER.unpack(
            index[len(MAGIC) : start].tobytes()
        )
        if version != 1 or code not in DTYPES:
            raise InputError(
                f"{prefix}.idx has version {version} and dtype code {code}; this reader knows "
                f"version 1 and the codes {sorted(DTYPES)} of int32 and uint16: prepare it again"
            )
        self._require_size("idx", index.size, start + 12 * num_sequences + 8 * num_documents)
        self.dtype = DTYPES[code]
        self.lengths = index[start : start + 4 * num_sequences].view("<i4")
        self.offsets = index[start + 4 * num_sequences :][: 8 * num_sequences].view("<i8")
        self._check_places()
        self._tokens = self._map("bin", self.dtype)
        num_bytes = int(self.lengths.sum(dtype=np.int64)) * self.dtype.itemsize
        self._require_size("bin", os.path.getsize(f"{prefix}.bin"), num_bytes)
        self._checksums: npt.NDArray[np.integer] | None = None
        if os.path.exists(f"{prefix}.crc32"):  # files of other programs have none
            self._checksums = self._map("crc32", np.dtype("<u4"))
            self._require_size("crc32", os.path.getsize(f"{prefix}.crc32"), 4 * num_sequences)

    def __len__(self) -> int:
        return int(self.lengths.size)

    def __getitem__(self, index: int) -> TokenArray:
        """Tokens of a sequence, shape [length]: a view of the file, read when touched."""
        return self.read(index, 0, int(self.lengths[index]))

    def read(self, index: int, start: int, stop: int) -> TokenArray:
        """Tokens ``[start, stop)`` of a sequence: the rest of it is not touched.

        Raises:
            InputError: it was read whole, and is not what was written.
        """
        length = int(self.lengths[index])
        assert 0 <= start <= stop <= length, (start, stop, length)
        first = int(self.offsets[index]) // self.dtype.itemsize
        tokens = np.asarray(self._tokens[first + start : first + stop])
        if self._checksums is not None and stop - start == length:
            found, written = zlib.crc32(tokens.data), int(self._checksums[index])
            if found != written:
                raise InputError(
                    f"{self.prefix}.bin: row {index} has the CRC-32 {found:08x}, where "
                    f"{self.prefix}.crc32 states {written:08x}: bytes have changed since it was "
                    "written; copy both again or prepare again"
                )
        return tokens

    def _check_places(self) -> None:
        """Sequences lie one behind the other: their lengths alone say where."""
        if self.lengths.size and self.lengths.min() < 1:
            number = int(self.lengths.argmin())
            raise InputError(
                f"{self.prefix}.idx gives sequence {number} {self.lengths[number]} tokens, where "
                "each has one at least: the file is damaged; copy it again or prepare again"
            )
        ends = np.cumsum(self.lengths, dtype=np.int64) * self.dtype.itemsize
        wrong = np.flatnonzero(self.offsets != np.append(np.int64(0), ends)[: ends.size])
        if wrong.size:
            number = int(wrong[0])
            expected = int(ends[number - 1]) if number else 0
            raise InputError(
                f"{self.prefix}.idx says that sequence {number} begins at byte "
                f"{self.offsets[number]} of {self.prefix}.bin, and the lengths before it make "
                f"{expected}: the file is damaged; copy it again or prepare again"
            )

    def _map(self, suffix: str, dtype: np.dtype[np.integer]) -> npt.NDArray[np.integer]:
        path = f"{self.prefix}.{suffix}"
        try:
            size = os.path.getsize(path) // dtype.itemsize
            if not size:
                return np.zeros(0, dtype=dtype)  # an empty file cannot be mapped
            return np.memmap(path, dtype=dtype, mode="r", shape=(size,))
        except PermissionError:
            raise
        except OSError as error:
            raise InputError(
                f"cannot read {path} ({error.strerror}): packed rows are the files "
                f"{self.prefix}.bin and {self.prefix}.idx; give their common prefix, or make them "
                "with `prepare`"
            ) from error

    def _require_size(self, suffix: str, found: int, stated: int) -> None:
        if found != stated:
            raise InputError(
                f"{self.prefix}.{suffix} has {found} bytes, where {self.prefix}.idx states "
                f"{stated}: a truncated copy, or files of two runs; copy both or prepare again"
            )


def unknown_id(tokens: npt.NDArray[Any], vocab_size: int) -> tuple[int, int] | None:
    """Place, in the flattened array, and value of the first id outside ``[0, vocab_size)``.

    ``unknown_id([[1, 2], [9, -1]], 5) -> (2, 9)``; None: the model knows all of them.
    """
    if not tokens.size or (tokens.min() >= 0 and tokens.max() < vocab_size):
        return None
    flat = tokens.reshape(-1)
    place = int(np.argmax((flat < 0) | (flat >= vocab_size)))
    return place, int(flat[place])


def why_unknown(token_id: int, vocab_size: int, model: str = "the model") -> str:
    """``token id 9, and the model knows ids 0 to 4 (vocab_size 5)``."""
    return (
        f"token id {token_id}, and {model} knows ids 0 to {vocab_size - 1} (vocab_size "
        f"{vocab_size})"
    )
