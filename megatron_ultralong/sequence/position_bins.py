"""Bins of positions for the loss, and sums over them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def bin_edges(seq_length: int, smallest: int, include: Sequence[int] = ()) -> tuple[int, ...]:
    """Edges of bins that double from ``smallest`` to the end of the row.

    ``seq_length=600, smallest=128 -> (0, 128, 256, 512, 600)``; positions in ``include`` that lie
    inside the row are edges too, so that a bin is wholly inside or beyond a model's context.

    Args:
        seq_length: tokens in a row, at least 2.
        smallest: width of the first bin.
        include: further edges, such as the positions a checkpoint was trained for.
    """
    assert seq_length >= 2, seq_length
    assert smallest >= 1, smallest
    last = seq_length - 1  # makes no prediction: a bin that held it alone would be empty
    edges = {0, seq_length, *(edge for edge in include if 0 < edge < last)}
    edge = smallest
    while edge < last:
        edges.add(edge)
        edge *= 2
    return tuple(sorted(edges))


def bin_sums(
    values: npt.NDArray[np.floating | np.bool_], edges: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Sums of one row's predictions over the bins, shape [num_bins].

    Prediction ``i`` is the one made at position ``i`` and belongs to the bin
    ``edges[k] <= i < edges[k + 1]``; the row's last position makes none.
    ``values=[1, 2, 3], edges=(0, 2, 4) -> [3, 3]``.

    Args:
        values: one number per prediction, shape [seq_length - 1].
        edges: from :func:`bin_edges`, the last one ``seq_length``.
    """
    assert values.shape == (edges[-1] - 1,), (values.shape, tuple(edges))
    padded = np.zeros(edges[-1], dtype=np.float64)
    padded[:-1] = values
    return np.add.reduceat(padded, np.asarray(edges[:-1]))
