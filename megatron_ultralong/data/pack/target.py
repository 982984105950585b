"""A source's sample, changed in a few documents until it has the tokens that it is to have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

TOLERANCE = 0.001
"""What a source's tokens may be off by, where whole documents allow it: 1 in 1,000."""

NONE = np.iinfo(np.int64).max
"""Tokens that an impossible change leaves."""

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def meet_target(
    copies: Int64Array,
    weights: Float64Array,
    units: Float64Array,
    lengths: Int64Array,
    bins: Int64Array,
) -> Int64Array:
    """Copies of one source's documents with ``sum(weights * lengths)`` tokens, as nearly as can be.

    Each step gives one document its other number of copies, ``floor(w)`` or ``floor(w) + 1``, or
    exchanges those of two documents of one bin: whatever leaves the least tokens missing. The steps
    end within :data:`TOLERANCE`, or where none helps. No bin's count is moved further from its
    expectation than the hash itself would by one standard deviation, ``sqrt(n f (1 - f))`` with the
    fraction ``f`` of its weight.

    Args:
        copies: of every document, by :func:`num_copies` of ``sampling.py``, shape
            [num_documents]; so are all others.
        weights: expected copies, equal inside a bin.
        units: the documents' hashes.
        lengths: their tokens.
        bins: their length bins.
    """
    weights = np.round(weights, 9)
    whole = np.floor(weights).astype(np.int64)
    fractions = weights - whole
    # of equally good documents the one whose hash is nearest to the other choice comes first:
    # nothing depends on the order of the input
    free = np.argsort(np.abs(units - fractions), kind="stable")
    free = free[fractions[free] > 0]
    sample = _Sample((copies > whole)[free], fractions[free], lengths[free], bins[free])
    sample.improve(TOLERANCE * float((weights * lengths).sum()))
    result = whole.copy()
    result[free] += sample.chosen
    return result


class _Change(NamedTuple):
    """Documents whose choice is turned, and the tokens missing or too many after it."""

    left: int
    documents: Sequence[int]


class _Sample:
    """Documents that are chosen or not, shape [num_documents] each."""

    def __init__(
        self, chosen: BoolArray, fractions: Float64Array, lengths: Int64Array, bins: Int64Array
    ) -> None:
        self.chosen = chosen
        self.fractions = fractions
        self.lengths = lengths
        self.bins = bins
        # whole tokens: every step is a real one, never a rounding error
        self.target = round(float((fractions * lengths).sum()))
        self.deviation = np.sqrt(np.bincount(bins, fractions * (1 - fractions)))

    @property
    def missing(self) -> int:
        """Tokens less than expected."""
        return self.target - int(self.lengths[self.chosen].sum())

    def improve(self, tolerance: float) -> None:
        """Turn choices until the tokens are within ``tolerance`` of the expected ones."""
        while abs(self.missing) > tolerance:
            changes = [self._one(), *(self._two(b) for b in range(self.deviation.size))]
            best = min(changes, key=lambda change: change.left)
            if best.left >= abs(self.missing):
                return
            self.chosen[best.documents] ^= True

    def _one(self) -> _Change:
        """The one document to turn."""
        step = np.where(self.chosen, -1, 1)
        excess = np.bincount(self.bins, self.chosen - self.fractions)
        limit = np.maximum(self.deviation, np.abs(excess))
        allowed = np.abs(excess[self.bins] + step) <= limit[self.bins]
        left = np.where(allowed, np.abs(self.missing - step * self.lengths), NONE)
        best = int(np.argmin(left))
        return _Change(int(left[best]), [best])

    def _two(self, length_bin: int) -> _Change:
        """The two documents of a bin to exchange."""
        here = self.bins == length_bin
        into, out = np.flatnonzero(here & ~self.chosen), np.flatnonzero(here & self.chosen)
        best = _Change(NONE, [])
        if into.size and out.size:
            out = out[np.argsort(self.lengths[out], kind="stable")]
            # for each that may come in, the two that fit best to go
            place = np.searchsorted(self.lengths[out], self.lengths[into] - self.missing)
            for at in (np.maximum(place - 1, 0), np.minimum(place, out.size - 1)):
                left = np.abs(self.missing - self.lengths[into] + self.lengths[out[at]])
                first = int(np.argmin(left))
                change = _Change(int(left[first]), [int(into[first]), int(out[at[first]])])
                best = min(best, change, key=lambda change: change.left)
        return best
