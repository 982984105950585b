"""Rows as training reads them, of documents or of conversations: no more than is asked for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.rows.indexed import IndexedReader
from megatron_ultralong.data.rows.manifest import ChatManifest
from megatron_ultralong.data.rows.packed import PackedRows, rows_of
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.sequence.document_mask import DocumentMask
from megatron_ultralong.sequence.documents import loss_mask

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
Chunk = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class StoredRow:
    """One row of :class:`PackedRows`, of which only what is asked for is read from disk.

    Rows that came without boundaries are read whole when their documents are asked for.
    """

    rows: PackedRows
    number: int
    separator_ids: tuple[int, ...]
    """Ids between documents, for rows that came without boundaries."""

    @property
    def seq_length(self) -> int:
        """Tokens of the row."""
        return self.rows.seq_length

    @property
    def num_real_tokens(self) -> int:
        """Tokens before the padding; rows that came without boundaries have none."""
        rows = self.rows
        return rows.num_real_tokens(self.number) if rows.has_boundaries else self.seq_length

    @property
    def cu_seqlens(self) -> Int32Array:
        """Boundaries of the documents, int32 [num_documents + 1]; padding is the last one."""
        if self.rows.has_boundaries:
            return self.rows.boundaries(self.number)
        return self.rows.row(self.number, self.separator_ids).cu_seqlens

    def loss_mask(self, document_mask: DocumentMask) -> npt.NDArray[np.float32]:
        """Weight of every prediction: :func:`~megatron_ultralong.sequence.documents.loss_mask`."""
        length, real = self.seq_length, self.num_real_tokens
        edges = self.cu_seqlens if document_mask == "block" else np.asarray([0, length])
        return loss_mask(length, edges, document_mask, num_real_tokens=real)

    def read_chunks(self, chunks: Sequence[Chunk]) -> tuple[Int64Array, Int64Array]:
        """Tokens and labels of the chunks of a row, each int64 [sum of the chunks' sizes].

        Each chunk is read with the one token after it, its last label; nothing else of the row is
        touched. The last label of a row is 0 and never counts
        (:func:`~megatron_ultralong.sequence.documents.next_token_labels`).
        """
        tokens, labels = [], []
        for start, stop in chunks:
            read = self.rows.read(self.number, start, min(stop + 1, self.seq_length))
            tokens.append(read[: stop - start])
            labels.append(np.append(read[1:], 0) if stop == self.seq_length else read[1:])
        return np.concatenate(tokens), np.concatenate(labels)


def targets_prefix(path_prefix: str | Path) -> Path:
    """Where the tokens to be learnt stand: ``out/train -> out/train.targets``."""
    return Path(f"{path_prefix}.targets")


class ChatRows:
    """Rows of ``ultralong prepare chat``: ``ChatRows("out/train").row(i)``.

    Raises:
        InputError: where a file is missing, cut short, empty or of another run.
    """

    def __init__(self, path_prefix: str | Path, vocab_size: int | None = None) -> None:
        """Open them; ``vocab_size``: of the model, as :class:`PackedRows` takes it."""
        self.rows = PackedRows(path_prefix, vocab_size)
        beside = targets_prefix(path_prefix)
        self._targets = IndexedReader(beside)
        if len(self._targets) != len(self.rows) or not self.rows.has_boundaries:
            raise InputError(
                f"{beside}.idx is of {counted(len(self._targets), 'row')}, where "
                f"{path_prefix}.idx has "
                f"{len(self.rows)}, and {path_prefix}.boundaries.idx belongs to them: files of two "
                "runs, or some are missing; copy all of one again or prepare again"
            )
        if self._targets.dtype != np.dtype("<i4"):
            raise InputError(
                f"{beside}.idx states numbers of type {self._targets.dtype}, where targets are "
                "int32: the file is damaged; copy it again or prepare again"
            )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def seq_length(self) -> int:
        """Tokens of a row."""
        return self.rows.seq_length

    @property
    def path_prefix(self) -> str | Path:
        """Where they lie."""
        return self.rows.path_prefix

    def row(self, number: int) -> ChatRow:
        """A row, of which nothing has been read."""
        return ChatRow(self.rows, number, (), self)

    def targets(self, number: int) -> Int64Array:
        """Tokens ``[start, stop)`` of a row to be learnt, shape [num_targets, 2].

        Raises:
            InputError: they are not ranges inside the conversations of the row.
        """
        record = self._targets[number].astype(np.int64)
        problem = _target_problem(record, self.rows.boundaries(number))
        if problem:
            raise InputError(
                f"{targets_prefix(self.path_prefix)}.bin: row {number} {problem}: the file is "
                "damaged, or of other rows; copy it again or prepare again"
            )
        return record[1:].reshape(-1, 2)  # the first number is how many there are

    def check(self, number: int) -> None:
        """Read a row, and look at all that is known of it.

        Raises:
            InputError: something of it is damaged, or is not for this model.
        """
        self.rows.check(number)
        self.targets(number)

    def examples(self, number: int) -> list[tuple[Int64Array, Int64Array]]:
        """Conversations of a row: their tokens [T], and their targets counted from its start."""
        tokens, targets = self.rows[number], self.targets(number)
        real = self.rows.num_real_tokens(number)
        edges = self.rows.boundaries(number).astype(np.int64)
        cuts = np.searchsorted(targets[:, 0], edges)  # targets rise
        found = []
        for place, (start, stop) in enumerate(itertools.pairwise(edges.tolist())):
            if start < real:
                own = targets[cuts[place] : cuts[place + 1]]
                found.append((tokens[start:stop], own - start))
        return found


def _target_problem(record: Int64Array, cu_seqlens: npt.NDArray[np.int32]) -> str | None:
    """What is wrong with a row's number of targets and their starts and stops."""
    if record.size != 1 + 2 * record[0]:
        return f"states {record[0]} targets and holds {record.size - 1} numbers, two for each"
    ends = record[1:]
    falls = np.flatnonzero(np.diff(ends, prepend=0) < 0)
    if falls.size or (ends[::2] == ends[1::2]).any():
        return "has targets that are empty or do not rise"
    starts, stops = ends[::2], ends[1::2]
    document = np.searchsorted(cu_seqlens, starts, side="right") - 1
    inside = document < len(cu_seqlens) - 1
    inside[inside] &= starts[inside] > cu_seqlens[document[inside]]
    inside[inside] &= stops[inside] <= cu_seqlens[document[inside] + 1]
    if not inside.all():
        place = int(np.argmin(inside))
        return (
            f"has target [{starts[place]}, {stops[place]}), where targets lie within one "
            "conversation, behind its first token"
        )
    return None


def chat_rows_of(
    folder: str | Path, split: str, manifest: ChatManifest, vocab_size: int | None = None
) -> ChatRows:
    """Rows of a split, as :func:`~megatron_ultralong.data.rows.packed.rows_of` opens them.

    Raises:
        InputError: a file is missing or damaged, or is not what the manifest says.
    """
    rows_of(folder, split, manifest)
    return ChatRows(Path(folder) / split, vocab_size)


@dataclasses.dataclass(frozen=True)
class ChatRow(StoredRow):
    """One row of :class:`ChatRows`, of which only what is asked for is read from disk."""

    chats: ChatRows

    def loss_mask(self, document_mask: DocumentMask) -> npt.NDArray[np.float32]:
        """Weight of every prediction, shape [S]: 1 where the next token is to be learnt."""
        del document_mask  # a conversation's first token is never to be learnt
        return target_mask(self.seq_length, self.chats.targets(self.number))


def target_mask(length: int, targets: Int64Array) -> npt.NDArray[np.float32]:
    """Weight of the prediction made at every position, shape [length].

    ``length=6, targets=[[2, 4], [5, 6]] -> [0, 1, 1, 0, 1, 0]``: tokens 2, 3 and 5 are predicted
    one position before.
    """
    changes = np.zeros(length, dtype=np.int64)
    assert not targets.size or targets[:, 0].min() > 0, "nothing predicts a row's first token"
    np.add.at(changes, targets[:, 0] - 1, 1)
    np.add.at(changes, targets[:, 1] - 1, -1)
    return (np.cumsum(changes) > 0).astype(np.float32)
