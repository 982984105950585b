"""Attention area of a run's rows, and how unevenly ranks share it."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.chunks import balanced_chunks, hop_areas, ring_time, zigzag_chunks
from megatron_ultralong.sequence.documents import causal_area

DRAWN_ROWS, DRAWN_DOCUMENTS = 32, 200_000
"""Rows that are drawn where documents are known by their mean length alone, at the most; fewer of
many short documents, whose ranks hardly differ."""


def expected_area(seq_length: int, mean_document_length: float) -> float:
    """Pairs (query, key) inside documents that end after every token with chance 1 / mean.

    Position ``i`` sees ``1 + q + q^2 + ... + q^i`` keys, with ``q = 1 - 1 / mean``; documents reach
    over the ends of rows, as ``prepare`` cuts them. ``(4, 1) -> 4``; a mean beyond all measure is
    one document: ``S (S + 1) / 2``.
    """
    if mean_document_length <= 1:
        return float(seq_length)
    mean = float(mean_document_length)
    log_q = math.log1p(-1.0 / mean)
    if -log_q * seq_length < 1e-6:
        return float(causal_area([0, seq_length]))
    # sum over i of mean (1 - q^(i+1))
    tail = -math.expm1(seq_length * log_q) * math.exp(log_q) * mean
    return mean * (seq_length - tail)


def drawn_rows(seq_length: int, mean_document_length: float) -> DocumentRows:
    """Rows whose documents have that mean length, the same ones whenever they are drawn."""
    generator, mean = np.random.default_rng(0), max(mean_document_length, 1.0)
    most = math.ceil(2 * seq_length / mean) + 64
    rows = []
    for _ in range(max(1, min(DRAWN_ROWS, DRAWN_DOCUMENTS // most))):
        lengths = generator.geometric(1 / mean, size=most)
        ends = np.cumsum(lengths)
        rows.append(tuple([0, *ends[ends < seq_length].tolist(), seq_length]))
    return DocumentRows(tuple(rows))


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentRows:
    """Documents of some rows, by their ``cu_seqlens``."""

    rows: tuple[tuple[int, ...], ...]

    def slowest_over_mean(self, parallel: ParallelConfig) -> float:
        """Time of attention over that of ranks that share it evenly and do not wait, the mean row.

        Ranks that gather all keys wait for the busiest at the end alone; those of a ring also at
        its hops (:mod:`~megatron_ultralong.sequence.chunks`).
        """
        # Neighbours that exchange heads share the work of their tokens.
        ranks, is_ring = parallel.ring_ranks, parallel.cp_comm_type != "all_gather"
        if ranks == 1:
            return 1.0
        key = (ranks, is_ring, parallel.cp_assignment)
        if key not in self._known:
            self._known[key] = float(np.mean([_slowest(row, *key) for row in self.rows]))
        return self._known[key]

    @functools.cached_property
    def _known(self) -> dict[tuple[int, bool, str], float]:
        """By ranks and the like; a search asks for each again and again."""
        return {}


def _slowest(row: tuple[int, ...], ranks: int, is_ring: bool, assignment: str) -> float:
    """Of one row."""
    is_balanced = assignment == "balanced"
    areas = hop_areas(balanced_chunks(row, ranks) if is_balanced else zigzag_chunks(ranks), row)
    by_rank = areas.sum(axis=1)
    return ring_time(areas) if is_ring else float(by_rank.max() / by_rank.mean())


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is known of prepared rows."""

    num_rows: int
    mean_area: float
    """Attention area of a mean row, documents masked."""
    documents: DocumentRows
    """Of some of them."""


class Area(NamedTuple):
    """Attention area of a mean row, and how it was found."""

    pairs: float
    text: str
    documents: DocumentRows | None = None


def area_of(config: TrainingConfig, mean_document_length: float, rows: Rows | None = None) -> Area:
    """Area of a mean row.

    ``mean_document_length`` is in tokens, or 0; ``rows`` are those of a data folder, if there is
    one.

    Raises:
        InputError: documents are masked, and nothing tells their lengths.
    """
    length = config.data.seq_length
    whole = float(causal_area([0, length]))
    if config.data.document_mask == "none":
        if mean_document_length:
            raise InputError(
                f"--mean-document-length ({mean_document_length:g}) counts under document_mask "
                "block alone: without the mask every row is one area; use --document-mask block"
            )
        return Area(whole, "no document mask")
    if mean_document_length:
        area = expected_area(length, mean_document_length)
        text = f"documents of {mean_document_length:,.0f} tokens in the mean"
        documents = drawn_rows(length, mean_document_length)
    elif rows is not None:
        area, text = rows.mean_area, f"documents of {config.data.data_path}"
        documents = rows.documents
    elif config.verb == "sft":
        return Area(
            whole,
            "as if every row were one conversation, which takes the longest: name a prepared "
            "folder with --data-path, or their mean length with --mean-document-length",
        )
    else:
        raise InputError(
            "document_mask block needs the documents: name a prepared folder with --data-path, or "
            "their mean length with --mean-document-length"
        )
    share = f"{area / whole:.1%} of the causal area"
    even = f", cp_assignment {config.parallel.cp_assignment}"
    return Area(area, f"{text}, {share}{even}", documents)
