"""Packed rows as training and evaluation read them, and the order in which a run takes them."""

import functools
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.rows.indexed import IndexedReader, unknown_id, why_unknown
from megatron_ultralong.data.rows.manifest import ChatManifest, Manifest
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.sequence.documents import Row, document_boundaries

Int64Array = npt.NDArray[np.int64]


BOUNDARIES = "boundaries.crc32"


def boundaries_prefix(path_prefix: str | Path) -> Path:
    """Where the boundaries of the documents stand: ``out/train -> out/train.boundaries``."""
    return Path(f"{path_prefix}.boundaries")


class PackedRows:
    """Rows of equal length: ``PackedRows("out/train")[i] -> tokens``, int64, shape [S].

    Args:
        path_prefix: path of the two files, without ``.bin`` and ``.idx``.
        vocab_size: ids of the model that is to read them; None: they are not looked at.

    Raises:
        InputError: where a file is missing, cut short, empty or not of rows of one length; when a
            row is read, where it has an id that the model does not know, or boundaries that are
            none.
    """

    def __init__(self, path_prefix: str | Path, vocab_size: int | None = None) -> None:
        self._sequences = IndexedReader(path_prefix)
        lengths = self._sequences.lengths
        if lengths.size == 0 or lengths.min() != lengths.max():
            found = f"{lengths.min()} to {lengths.max()} tokens" if lengths.size else "no rows"
            raise InputError(
                f"{path_prefix}.idx holds {found}, where packed rows all have one length: "
                "this is not an output of `prepare`; prepare the documents first"
            )
        self.seq_length = int(lengths[0])
        if self.seq_length < 2:
            raise InputError(
                f"{path_prefix}.idx holds rows of {self.seq_length} token, where a row has two at "
                "least, one to predict the other: prepare longer rows"
            )
        self.path_prefix = path_prefix
        self.vocab_size = vocab_size
        self._boundaries = self._open_boundaries()
        self._last: tuple[int, npt.NDArray[np.int32]] | None = None

    def _open_boundaries(self) -> IndexedReader | None:
        beside = boundaries_prefix(self.path_prefix)
        if not any(Path(f"{beside}.{suffix}").exists() for suffix in ("idx", "bin")):
            return None
        reader = IndexedReader(beside)
        if len(reader) != len(self):
            raise InputError(
                f"{beside}.idx is of {counted(len(reader), 'row')}, where "
                f"{self.path_prefix}.idx has "
                f"{len(self)}: files of two runs; copy all of one again or prepare again"
            )
        if reader.dtype != np.dtype("<i4"):
            raise InputError(
                f"{beside}.idx states numbers of type {reader.dtype}, where boundaries are int32: "
                "the file is damaged, or of another program; copy it again or prepare again"
            )
        return reader

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, row: int) -> Int64Array:
        """Tokens of a row, shape [S]."""
        return self.read(row, 0, self.seq_length)

    def read(self, row: int, start: int, stop: int) -> Int64Array:
        """Tokens ``[start, stop)`` of a row: the rest of the row is not read from disk.

        Raises:
            InputError: the model does not know an id among them.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        tokens = self._sequences.read(row, start, stop)
        if self.vocab_size is not None:
            unknown = unknown_id(tokens, self.vocab_size)
            if unknown is not None:
                position, token_id = start + unknown[0], unknown[1]
                raise InputError(
                    f"{self.path_prefix}.bin: row {row} has at position {position} "
                    f"{why_unknown(token_id, self.vocab_size)}: they have another tokenizer or "
                    "are damaged; prepare them with the model's own tokenizer, or copy them again"
                )
        return tokens.astype(np.int64)

    def check(self, row: int) -> None:
        """Read a row, and look at all that is known of it.

        Raises:
            InputError: something of it is damaged, or is not for this model.
        """
        self.read(row, 0, self.seq_length)
        if self.has_boundaries:
            self.boundaries(row)

    def row(self, row: int, separator_ids: Sequence[int], length: int = 0) -> Row:
        """The first ``length`` tokens of a row (0: all), with its documents.

        Those are what is kept beside it, else what its separators tell.
        """
        length = length or self.seq_length
        tokens = self.read(row, 0, length)
        if not self.has_boundaries:
            return Row(tokens, document_boundaries(tokens, separator_ids), length)
        edges = self.boundaries(row)
        cut = np.append(edges[edges < length], np.int32(length)).astype(np.int32)
        return Row(tokens, cut, min(self.num_real_tokens(row), length))

    @property
    def has_boundaries(self) -> bool:
        """Whether the boundaries of the documents stand beside the rows."""
        return self._boundaries is not None

    def boundaries(self, row: int) -> npt.NDArray[np.int32]:
        """``cu_seqlens`` of the documents of a row, int32 [num_documents + 1], without a search.

        See :func:`~megatron_ultralong.data.pack.packing.row_boundaries`. Padding is the last
        document.

        Raises:
            InputError: where they were not kept, or are damaged.
        """
        return self._boundary_record(row)[1:]

    def num_real_tokens(self, row: int) -> int:
        """Tokens of a row before its padding: ``seq_length`` except for ``--packing whole``.

        Raises:
            InputError: where it was not kept, or is damaged.
        """
        return int(self._boundary_record(row)[0])

    def _boundary_record(self, row: int) -> npt.NDArray[np.int32]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        if self._boundaries is None:
            raise InputError(
                f"{boundaries_prefix(self.path_prefix)}.idx is not there: these rows came without "
                "the boundaries of their documents; copy that file and its .bin too, or find them "
                "by the separator (documents.document_boundaries)"
            )
        if self._last is None or self._last[0] != row:
            record = self._boundaries[row].astype(np.int32)
            problem = _boundary_problem(record, self.seq_length)
            if problem:
                raise InputError(
                    f"{boundaries_prefix(self.path_prefix)}.bin: row {row} {problem}: the file is "
                    "damaged, or of other rows; copy it again or prepare again"
                )
            self._last = (row, record)
        return self._last[1]


def checksums_of(path_prefix: str | Path, parts: Sequence[str]) -> dict[str, str]:
    """CRC-32 of ``PREFIX.crc32`` and of ``PREFIX.PART.crc32`` of each part, by the end of the name.

    Raises:
        InputError: a file is not there.
    """
    found = {}
    for name in ("crc32", *(f"{part}.crc32" for part in parts)):
        file = Path(f"{path_prefix}.{name}")
        try:
            found[name] = f"{zlib.crc32(file.read_bytes()):08x}"
        except FileNotFoundError as error:
            raise InputError(
                f"{file} is not there, and the manifest beside it states what it holds: copy it "
                "too, or prepare again"
            ) from error
    return found


def check_one_run(path_prefix: str | Path, stated: Mapping[str, str]) -> None:
    """Check that rows and what stands beside them are those of their manifest.

    Boundaries may be missing: separators may tell the documents.

    Args:
        path_prefix: of the rows, ``out/train``.
        stated: ``checksums`` of the split in the manifest; empty: of an earlier version.

    Raises:
        InputError: files of another run lie among them, or one is not there.
    """
    if not stated:
        return
    has_boundaries = Path(f"{path_prefix}.{BOUNDARIES}").exists()
    names = [name for name in stated if name != BOUNDARIES or has_boundaries]
    parts = [name.removesuffix(".crc32") for name in names if name != "crc32"]
    for name, found in checksums_of(path_prefix, parts).items():
        if found != stated[name]:
            files = f"{path_prefix}.{name.removesuffix('crc32')}"
            raise InputError(
                f"{files}* are not of the run that wrote the manifest beside them: {files}crc32 "
                f"has the CRC-32 {found}, and the manifest states {stated[name]}; copy the whole "
                "folder of one run, or prepare again"
            )


def rows_of(
    folder: str | Path,
    split: str,
    manifest: Manifest | ChatManifest,
    vocab_size: int | None = None,
    *,
    searchable: bool = False,
) -> PackedRows:
    """Rows of a split as ``manifest``, beside them, describes them.

    ``searchable``: separators tell where documents end, should their boundaries be missing.

    Raises:
        InputError: a file is missing or damaged, or is not what the manifest says.
    """
    stated = manifest.splits.get(split)
    where = f"{folder}'s manifest"
    if stated is None:
        raise InputError(
            f"{where} knows no split {split!r}, only {', '.join(manifest.splits)}: prepare it with "
            f"a --{split}-fraction above 0, or leave that split out"
        )
    rows = PackedRows(Path(folder) / split, vocab_size)
    for name, found, wanted in (
        ("rows", len(rows), stated.num_rows),
        ("tokens a row", rows.seq_length, manifest.seq_length),
    ):
        if found != wanted:
            raise InputError(
                f"{rows.path_prefix}.idx is of {found} {name}, and {where} of {wanted}: files of "
                "two runs, or one is damaged; copy all of one again or prepare again"
            )
    check_one_run(rows.path_prefix, stated.checksums)
    if not rows.has_boundaries and not searchable:
        raise InputError(
            f"{boundaries_prefix(rows.path_prefix)}.idx and .bin are not there, and separators do "
            "not tell all that they did (padding, or documents that hold the separator "
            "themselves): copy them too, or prepare again"
        )
    return rows


def _boundary_problem(record: npt.NDArray[np.int32], seq_length: int) -> str | None:
    """What is wrong with a row's number of real tokens and its ``cu_seqlens``."""
    if record.size < 3:
        return f"has {record.size} numbers, where its real tokens and two boundaries are the fewest"
    real, edges = int(record[0]), record[1:]
    if (edges[0], edges[-1]) != (0, seq_length):
        return (
            f"has boundaries from {edges[0]} to {edges[-1]}, where its documents fill it from 0 to "
            f"{seq_length}"
        )
    falls = np.flatnonzero(edges[1:] <= edges[:-1])
    if falls.size:
        place = int(falls[0])
        return (
            f"has boundary {edges[place + 1]} behind {edges[place]} (number {place + 1}), where "
            "boundaries rise"
        )
    if not 0 < real <= seq_length:
        return f"states {real} tokens before its padding, and has {seq_length} tokens"
    if real not in (int(edges[-2]), seq_length):
        return (
            f"states {real} tokens before its padding, where padding is its last document, from "
            f"{edges[-2]} on"
        )
    return None


@functools.lru_cache(maxsize=4)
def row_order(num_rows: int, epoch: int, seed: int) -> Int64Array:
    """Order of the rows in one epoch, a permutation of ``range(num_rows)``, read-only.

    A function of its arguments alone. The raw output of Philox is sorted, because numpy keeps that
    output the same in all its versions, and does not promise it of ``Generator.permutation``.
    """
    generator = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    order = np.argsort(generator.random_raw(num_rows), kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def rows_of_samples(samples: range, num_rows: int, seed: int) -> Int64Array:
    """Rows that the samples of a run stand in, each once, in rising order."""
    if len(samples) >= num_rows:
        return np.arange(num_rows)
    numbers: list[Int64Array] = []
    sample = samples.start
    while sample < samples.stop:  # two epochs at most
        epoch, place = divmod(sample, num_rows)
        part = row_order(num_rows, epoch, seed)[place : place + samples.stop - sample]
        numbers.append(part)
        sample += part.size
    return np.unique(np.concatenate(numbers)) if numbers else np.arange(0)


def global_row_index(sample: int, num_rows: int, seed: int) -> int:
    """Row of sample number ``sample`` of a run (the samples consumed before it).

    A run resumes by its count of consumed samples alone; samples ``[e n, (e + 1) n)`` are a
    permutation of the ``n`` rows, another one in each epoch ``e``.
    """
    assert num_rows > 0, num_rows
    assert sample >= 0, sample
    epoch, place = divmod(sample, num_rows)
    return int(row_order(num_rows, epoch, seed)[place])
