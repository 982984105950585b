"""Documents and tokens by source and length, before and after sampling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.pack.sampling import LengthSampling
from megatron_ultralong.data.rows.manifest import BinSummary, LengthCount
from megatron_ultralong.data.store.documents import DocumentStore

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Cell:
    """Documents of one source and one bin: found and packed, documents and tokens."""

    source: str
    bin: int
    num_documents: int
    num_tokens: int
    num_documents_sampled: int
    num_tokens_sampled: int


def _cells(
    store: DocumentStore, bins: Int64Array, num_bins: int, packed: Int64Array
) -> list[_Cell]:
    """One for each source and bin, in this order; ``packed`` holds a document once a copy."""
    cells = store.sources * num_bins + bins
    size = len(store.source_names) * num_bins
    columns = [
        np.bincount(cells, minlength=size),
        np.bincount(cells, store.lengths, size),
        np.bincount(cells[packed], minlength=size),
        np.bincount(cells[packed], store.lengths[packed], size),
    ]
    return [
        _Cell(store.source_names[i // num_bins], i % num_bins, *(int(c[i]) for c in columns))
        for i in range(size)
    ]


def bin_summaries(
    store: DocumentStore, sampling: LengthSampling, weights: Float64Array, packed: Int64Array
) -> list[BinSummary]:
    """Counts by the bins of the sampling, with their weights."""
    names = sampling.bin_names()
    bins = sampling.bins(store.lengths)
    weight = np.zeros((len(store.source_names), len(names)))
    weight[store.sources, bins] = weights  # one value in each cell
    return [
        BinSummary(
            source=cell.source,
            length_bin=names[cell.bin],
            weight=float(weight[number // len(names), cell.bin]),
            num_documents=cell.num_documents,
            num_tokens=cell.num_tokens,
            num_documents_sampled=cell.num_documents_sampled,
            num_tokens_sampled=cell.num_tokens_sampled,
        )
        for number, cell in enumerate(_cells(store, bins, len(names), packed))
    ]


def length_counts(store: DocumentStore, packed: Int64Array) -> list[LengthCount]:
    """Counts by powers of two: a document of 1,000 tokens counts at 512."""
    powers = np.frexp(store.lengths.astype(np.float64))[1].astype(np.int64) - 1
    cells = _cells(store, powers, int(powers.max(initial=0)) + 1, packed)
    return [
        LengthCount(
            source=cell.source,
            min_length=1 << cell.bin,
            num_documents=cell.num_documents,
            num_tokens=cell.num_tokens,
            num_documents_sampled=cell.num_documents_sampled,
            num_tokens_sampled=cell.num_tokens_sampled,
        )
        for cell in cells
        if cell.num_documents
    ]
