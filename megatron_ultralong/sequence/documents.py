"""Documents inside a row of tokens: separators, boundaries, loss mask and split.

A row is many documents joined by a fixed run of *separator ids* (arXiv 2504.06214, section 3.1:
``<s>`` instead of begin- and end-of-text). The rules, here and nowhere else:

* A separator **closes** the document before it: its ids are that document's last tokens.
* The token at position ``i`` predicts the token at ``i + 1``. Predicting the separator counts in
  the loss: a model has to learn where a document ends.
* Predicting a document's first token (from the last separator id before it) counts when documents
  may attend to each other (``document_mask: none``) and does not under ``block``, where nothing
  the query may see belongs to that document.
* The last token of a row has no label in the row: it never counts.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from megatron_ultralong.sequence.document_mask import DocumentMask

IntArray = npt.NDArray[np.integer]


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of tokens and what is known of its documents."""

    tokens: npt.NDArray[np.int64]
    """Token ids, shape [S]."""
    cu_seqlens: npt.NDArray[np.int32]
    """Boundaries of the documents, shape [num_documents + 1]; padding is the last one."""
    num_real_tokens: int
    """Tokens before the padding; S without padding."""

    @property
    def seq_length(self) -> int:
        """Tokens of the row."""
        return len(self.tokens)

    def loss_mask(self, document_mask: DocumentMask) -> npt.NDArray[np.float32]:
        """See :func:`loss_mask`."""
        return loss_mask(
            self.seq_length, self.cu_seqlens, document_mask, num_real_tokens=self.num_real_tokens
        )

    def read_chunks(
        self, chunks: Sequence[tuple[int, int]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Tokens and labels of the ranges ``[start, stop)``, end to end."""
        labels = next_token_labels(self.tokens)
        return (
            np.concatenate([self.tokens[start:stop] for start, stop in chunks]),
            np.concatenate([labels[start:stop] for start, stop in chunks]),
        )


def document_boundaries(tokens: IntArray, separator_ids: Sequence[int]) -> npt.NDArray[np.int32]:
    """Boundaries ``cu_seqlens`` of the documents in one row, shape [num_documents + 1].

    With separator ``(8, 9)``: ``[1, 2, 8, 9, 3, 8, 9, 4] -> [0, 4, 7, 8]``. Matches of the
    separator are taken from left to right and do not overlap. No document is empty, except that
    two separators in a row leave a document that holds the second one alone.

    Args:
        tokens: one row of token ids, shape [S].
        separator_ids: the run of ids between documents; an empty one means a single document.
    """
    tokens = np.asarray(tokens)
    assert tokens.ndim == 1, f"one row at a time, not shape {tokens.shape}"
    if tokens.size == 0:
        return np.zeros(1, dtype=np.int32)
    ends = [end for end in _separator_ends(tokens, separator_ids) if end < tokens.size]
    return np.asarray([0, *ends, tokens.size], dtype=np.int32)


def _separator_ends(tokens: IntArray, separator_ids: Sequence[int]) -> list[int]:
    """Position just after every separator of the row."""
    width = len(separator_ids)
    if width == 0 or tokens.size < width:
        return []
    last_start = tokens.size - width + 1
    match = np.ones(last_start, dtype=bool)
    for offset, separator_id in enumerate(separator_ids):
        match &= tokens[offset : offset + last_start] == separator_id
    ends: list[int] = []
    for start in np.flatnonzero(match).tolist():
        if not ends or start >= ends[-1]:  # (7, 7) in [7, 7, 7] is one separator
            ends.append(start + width)
    return ends


def causal_area(cu_seqlens: IntArray | Sequence[int]) -> int:
    """Pairs (query, key) of causal attention inside documents: ``[0, 2, 5] -> 3 + 6 = 9``.

    One row without a document mask is one document: ``[0, S] -> S (S + 1) / 2``.
    """
    edges = np.asarray(cu_seqlens, dtype=np.int64)
    lengths = edges[1:] - edges[:-1]
    return int((lengths * (lengths + 1) // 2).sum())


def chunk_areas(cu_seqlens: IntArray | Sequence[int], num_chunks: int) -> npt.NDArray[np.float64]:
    """The same of the queries of every chunk of a row, [num_chunks].

    ``[0, 3, 4]`` in two chunks: ``[1 + 2, 3 + 1]``. Chunks may end between tokens.
    """
    edges = np.asarray(cu_seqlens, dtype=np.float64)
    before = np.concatenate([[0.0], np.cumsum(_triangle(np.diff(edges)))])
    cuts = np.linspace(0.0, edges[-1], num_chunks + 1)
    document = np.clip(np.searchsorted(edges, cuts, side="right") - 1, 0, len(edges) - 2)
    return np.diff(before[document] + _triangle(cuts - edges[document]))


def _triangle(length: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Pairs of a causal mask over ``length`` tokens."""
    return length * (length + 1) / 2


def document_numbers(cu_seqlens: IntArray) -> npt.NDArray[np.int32]:
    """Document number of every token, shape [S]: ``[0, 3, 5] -> [0, 0, 0, 1, 1]``."""
    lengths = np.diff(cu_seqlens)
    return np.repeat(np.arange(lengths.size, dtype=np.int32), lengths)


def document_positions(positions: IntArray, cu_seqlens: IntArray) -> npt.NDArray[np.int64]:
    """Positions in a row counted from their document's start: ``[0, 3, 5]``, 2 3 4 -> 2 0 1."""
    starts = np.asarray(cu_seqlens[:-1], dtype=np.int64)
    document = np.searchsorted(starts, positions, side="right") - 1
    return np.asarray(positions, dtype=np.int64) - starts[document]


def next_token_labels(tokens: IntArray) -> npt.NDArray[np.int64]:
    """Labels of a row, shape [S]: ``[5, 6, 7] -> [6, 7, 0]``; the last one is never counted."""
    labels = np.zeros(len(tokens), dtype=np.int64)
    labels[:-1] = np.asarray(tokens)[1:]
    return labels


def loss_mask(
    length: int,
    cu_seqlens: IntArray,
    document_mask: DocumentMask,
    *,
    num_real_tokens: int | None = None,
) -> npt.NDArray[np.float32]:
    """Weight (1 or 0) of the prediction made at every position, shape [length].

    Padding, the tokens from ``num_real_tokens`` on, is not predicted and predicts nothing.

    ``length=5, cu_seqlens=[0, 3, 5]``: ``none -> [1, 1, 1, 1, 0]``, ``block -> [1, 1, 0, 1, 0]``.
    """
    mask = np.ones(length, dtype=np.float32)
    mask[-1:] = 0.0
    if document_mask == "block":
        mask[np.asarray(cu_seqlens[1:-1], dtype=np.int64) - 1] = 0.0
    if num_real_tokens is not None:
        mask[max(num_real_tokens - 1, 0) :] = 0.0
    return mask


def unit_hash(seed: int, key: str) -> float:
    """Uniform number in [0, 1) that depends on ``(seed, key)`` alone, on every machine."""
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2.0**53  # 53 bits: never rounds up to 1


def document_id(text: str) -> str:
    """Identity of a document: the BLAKE2b-128 of its text in hexadecimal."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def document_split(identity: str, valid_fraction: float, seed: int) -> Literal["train", "valid"]:
    """The split a document belongs to, by its identity: equal texts never stand in both."""
    return "valid" if split_place(identity, seed) < valid_fraction else "train"


def split_place(identity: str, seed: int) -> float:
    """Fraction held out, in [0, 1), above which a document is among them."""
    return unit_hash(seed, f"split:{identity}")


class Boundaries(tuple[int, ...]):
    """``Boundaries((0, 3, 5))``: a tuple that keeps its hash, equal to any tuple of its numbers.

    A plain tuple is hashed and compared number by number at every question, in every layer; the
    same object is known by its kept hash and its identity.
    """

    def __hash__(self) -> int:
        """The tuple's own."""
        kept: int | None = self.__dict__.get("_hash")
        if kept is None:
            kept = self.__dict__["_hash"] = super().__hash__()
        return kept
