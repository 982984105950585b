"""Every distinct document of the sources, tokenised once, and the rows that are made of them."""

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.pack import packing
from megatron_ultralong.data.pack.packing import Int64Array
from megatron_ultralong.data.read.reading import MAX_BAD_SHOWN, require_text
from megatron_ultralong.data.read.sources import FoundFiles
from megatron_ultralong.data.rows.indexed import IndexedWriter, token_dtype
from megatron_ultralong.data.rows.manifest import FileSummary, InputSummary, SplitSummary
from megatron_ultralong.data.rows.packed import boundaries_prefix, checksums_of
from megatron_ultralong.data.store.shards import Shard
from megatron_ultralong.program.progress import ProgressBar, progress


@dataclass(frozen=True)
class DocumentStore:
    """Distinct documents; their tokens stay in the files of their shards."""

    folder: Path
    """Where the shards lie."""
    shard_names: list[str]
    """Their folders."""
    dtype: np.dtype[np.integer]
    """Of a token on disk."""
    ids: list[str]
    """Identity of every document."""
    sources: Int64Array
    """Index of its source, shape [num_documents]."""
    source_names: list[str]
    """Names of the sources, in the order in which they were met."""
    lengths: Int64Array
    """Tokens of every document, shape [num_documents]."""
    shards: Int64Array
    """Index of its shard, shape [num_documents]."""
    offsets: Int64Array
    """Its first token there, shape [num_documents]."""
    inputs: list[InputSummary] = field(default_factory=list)
    num_with_separator: int = 0
    """Documents found with the separator among their own tokens."""

    def __post_init__(self) -> None:
        _opened.cache_clear()  # an earlier run in this process may have had files of these names

    def read(self, document: int, start: int, stop: int) -> npt.NDArray[np.integer]:
        """Tokens ``[start, stop)`` of a document.

        Read, not mapped: pages of a map that was walked through count as this process's memory.
        """
        file = _opened(self.folder / self.shard_names[int(self.shards[document])] / "tokens.bin")
        size, first = self.dtype.itemsize, int(self.offsets[document]) + start
        data = os.pread(file.number, (stop - start) * size, first * size)
        assert len(data) == (stop - start) * size, (document, start, stop)
        return np.frombuffer(data, dtype=self.dtype)


class _Opened:
    """A file descriptor that is closed when it is forgotten."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.number)


# shards may be more than the files that a process may open
_opened = functools.lru_cache(maxsize=256)(_Opened)


def merge_shards(
    shards: Sequence[Shard],
    sources: Sequence[FoundFiles],
    folder: Path,
    dtype: np.dtype[np.integer],
    *,
    drop_separators: bool = False,
) -> DocumentStore:
    """The documents of finished shards, in the order of reading, the first of equal ones alone.

    ``dtype`` is that of a token in them. Under ``drop_separators`` documents with the separator
    among their own tokens are left out.

    Raises:
        InputError: for a source without text.
    """
    merge = _Merge(folder, drop_separators)
    inputs = []
    for index, source in enumerate(sources):
        own = [shard for shard in shards if shard.input == index]
        inputs.append(merge.add_input(source, own))
    columns = [np.concatenate(column) for column in zip(*merge.columns, strict=True)]
    lengths, offsets, numbers, shard_numbers = columns
    return DocumentStore(
        folder=folder,
        shard_names=merge.shard_names,
        dtype=dtype,
        ids=merge.ids,
        sources=numbers,
        source_names=list(merge.source_numbers),
        lengths=lengths,
        shards=shard_numbers,
        offsets=offsets,
        inputs=inputs,
        num_with_separator=merge.num_with_separator,
    )


@dataclass
class _Merge:
    """Collects the tables of the shards, one after the other."""

    folder: Path
    drop_separators: bool
    seen: set[str] = field(default_factory=set)
    ids: list[str] = field(default_factory=list)
    columns: list[tuple[Int64Array, ...]] = field(default_factory=list)
    shard_names: list[str] = field(default_factory=list)
    source_numbers: dict[str, int] = field(default_factory=dict)
    num_with_separator: int = 0

    def add_input(self, found: FoundFiles, shards: Sequence[Shard]) -> InputSummary:
        """The shards of one ``--source``."""
        source = found.source
        digest = hashlib.sha256()
        files: list[FileSummary] = []
        num_documents = num_duplicates = num_empty = num_bad = num_cut = 0
        bad: list[str] = []
        refused: dict[str, str] = {}
        kept: set[str] = set()
        for shard in shards:
            table = np.load(self.folder / shard.name / "table.npy")
            counts = json.loads((self.folder / shard.name / "counts.json").read_text())
            digest.update(np.ascontiguousarray(table["id"]).tobytes())
            is_new = self._is_first(table["id"].tobytes().hex())
            num_documents += table.size
            num_duplicates += table.size - int(is_new.sum())
            num_empty += counts["num_empty"] + int((is_new & (table["num_tokens"] == 0)).sum())
            num_bad += counts["num_bad"]
            num_cut += counts["num_cut_files"]
            bad += counts["bad"]
            refused = counts.get("refused_files", {}) | refused  # of an earlier version
            kept.update(counts.get("kept_files", ()))
            files += [FileSummary(**file) for file in counts["files"]]
            self._add(shard, table, is_new & (table["num_tokens"] > 0), counts["sources"])
        # Of a file in several shards, one of which has no good record.
        bad += [why for path, why in refused.items() if path in kept]
        require_text(source, num_documents, len(files), num_empty, num_bad)
        return InputSummary(
            name=source.name,
            path=source.pattern,
            files=files,
            num_documents=num_documents,
            num_duplicates=num_duplicates,
            num_empty=num_empty,
            num_bad=num_bad,
            num_cut_files=num_cut,
            bad=bad[:MAX_BAD_SHOWN],
            counts=found.counts,
            ids_sha256=digest.hexdigest(),
            text_key=source.text_key,
            refused_files={path: why for path, why in refused.items() if path not in kept},
        )

    def _is_first(self, hexadecimal: str) -> npt.NDArray[np.bool_]:
        """Whether no document before was equal, for each of a shard's."""
        first = []
        for start in range(0, len(hexadecimal), 32):
            identity = hexadecimal[start : start + 32]
            first.append(identity not in self.seen)
            self.seen.add(identity)
        return np.asarray(first, dtype=bool)

    def _add(
        self,
        shard: Shard,
        table: npt.NDArray[np.void],
        chosen: npt.NDArray[np.bool_],
        names: Sequence[str],
    ) -> None:
        self.num_with_separator += int((table["with_separator"] & chosen).sum())
        if self.drop_separators:
            chosen = chosen & ~table["with_separator"]
        lengths = np.maximum(table["num_tokens"], 0)
        offsets = np.cumsum(lengths) - lengths
        kept = table[chosen]
        self.ids += [identity.tobytes().hex() for identity in kept["id"]]
        # names count from the documents that are kept, in their order: as if read one by one
        for number in kept["source"].tolist():
            self.source_numbers.setdefault(names[number], len(self.source_numbers))
        numbers = [self.source_numbers[names[number]] for number in kept["source"].tolist()]
        where = np.full(kept.size, len(self.shard_names), dtype=np.int64)
        found = np.asarray(numbers, dtype=np.int64)
        self.columns.append((lengths[chosen], offsets[chosen], found, where))
        self.shard_names.append(shard.name)


class RowWriter:
    """Writes the rows of one split after the other."""

    def __init__(
        self, store: DocumentStore, separator_ids: Sequence[int], seq_length: int, vocab_size: int
    ) -> None:
        self.store = store
        self.separator = np.asarray(separator_ids, dtype=np.int32)
        self.seq_length = seq_length
        self.dtype = token_dtype(vocab_size)
        self._lengths = store.lengths + self.separator.size

    def write(self, folder: Path, plans: Mapping[str, packing.RowPlan]) -> dict[str, SplitSummary]:
        """``SPLIT.bin/.idx`` of the rows and ``SPLIT.boundaries.bin/.idx`` beside them.

        A sequence of the latter is the number of tokens before the padding and ``cu_seqlens``.
        """
        num_rows = sum(len(plan.rows) for plan in plans.values())
        with progress("Packing", num_rows * self.seq_length, "tokens") as bar:
            return {split: self._write(folder / split, plan, bar) for split, plan in plans.items()}

    def _write(self, prefix: Path, plan: packing.RowPlan, bar: ProgressBar) -> SplitSummary:
        int32 = np.dtype("<i4")
        with (
            IndexedWriter(boundaries_prefix(prefix), int32) as boundaries,
            IndexedWriter(prefix, self.dtype) as rows,
        ):
            for row in plan.rows:
                rows.add(self._tokens(row))
                cu_seqlens = packing.row_boundaries(row, self._lengths, self.separator.size)
                boundaries.add(np.append(np.int32(packing.num_real_tokens(row)), cu_seqlens))
                bar.advance(self.seq_length)
        return SplitSummary(
            num_documents=len(plan.kept),
            num_repeats_dropped=plan.num_repeats_dropped,
            num_rows=len(plan.rows),
            num_tokens=len(plan.rows) * self.seq_length,
            num_dropped_tokens=plan.num_dropped_tokens,
            num_documents_cut=plan.num_documents_cut,
            num_padding_tokens=plan.num_padding_tokens,
            checksums=checksums_of(prefix, ["boundaries"]),
        )

    def _tokens(self, row: Int64Array) -> npt.NDArray[np.int32]:
        """Tokens of a planned row, shape [seq_length]."""
        tokens = np.empty(self.seq_length, dtype=np.int32)
        filled = 0
        for document, start, stop in row.tolist():
            tokens[filled : filled + stop - start] = self._segment(document, start, stop)
            filled += stop - start
        assert filled == self.seq_length, (filled, self.seq_length)
        return tokens

    def _segment(self, document: int, start: int, stop: int) -> npt.NDArray[np.integer]:
        if document == packing.PADDING:
            return np.resize(self.separator, stop) if self.separator.size else np.zeros(stop, "i4")
        length = int(self.store.lengths[document])
        inside = self.store.read(document, start, min(stop, length)) if start < length else ()
        if stop <= length:
            return np.asarray(inside)
        after = self.separator[max(start - length, 0) : stop - length]
        return np.concatenate([np.asarray(inside, dtype=np.int32), after])
