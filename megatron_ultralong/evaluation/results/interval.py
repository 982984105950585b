"""What the samples allow to say of a score: its interval, and whether two of them differ.

All intervals are of 95 %. Of one cell it is the score interval of Wilson (1927, JASA 22:209) where
samples are all right or all wrong, and where that is not known or they are few: no scores of 0 to
100 with that mean vary more than all-or-nothing ones (Bhatia and Davis 2000), so it is then rather
too wide. Of partial scores it is the percentile interval of the bootstrap over samples (Efron and
Tibshirani 1993, chapter 13). Of a mean over tasks, and of a difference, it is made of these by the
squares of their arms (Newcombe 1998, Statistics in Medicine 17:873, method 10; Zou and Donner 2008,
27:1693). Of a loss, and of what states an error but no scores of samples, it is 1.96 standard
errors; what the harness states without an error has none.
"""

import math
import zlib
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from megatron_ultralong.evaluation.results.result import LOWER_IS_BETTER, Result, ScoreCell

LEVEL = 0.95
Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
_FEWEST_RESAMPLED = 30
"""Samples: of fewer the bootstrap's intervals are too narrow."""
_NUM_RESAMPLES = 2000
_MOST_DRAWN = 2**21
"""Numbers at a time, 8 bytes each."""


class Estimate(NamedTuple):
    """A score and its interval."""

    value: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        """``90.0 [88.1, 91.7]`` by ``.1f``; without an interval where there is none."""
        interval = f" [{self.low:{form}}, {self.high:{form}}]" if math.isfinite(self.low) else ""
        return f"{self.value:{form}}{interval}"

    def __str__(self) -> str:
        """``90.0 [88.1, 91.7]``."""
        return f"{self:.1f}"

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference, as of different questions."""
        value = self.value - other.value
        below = math.hypot(self.value - self.low, other.high - other.value)
        above = math.hypot(self.high - self.value, other.value - other.low)
        return Estimate(value, value - below, value + above)

    def differs_from(self, other: "Estimate") -> bool:
        """Whether the interval of the difference leaves out 0."""
        difference = self - other
        return difference.low > 0 or difference.high < 0


def wilson(score: float, num_samples: float) -> Estimate:
    """Wilson's interval of a score of 0 to 100: ``(90, 10) -> 59.6 to 98.2``."""
    share, square = score / 100, Z * Z / num_samples
    centre = share + square / 2
    margin = (square * (share * (1 - share) + square / 4)) ** 0.5
    low, high = ((centre + side * margin) / (1 + square) for side in (-1, 1))
    return Estimate(score, min(100 * low, score), max(100 * high, score))  # rounding


def cell_estimate(cell: ScoreCell, *, are_shares: bool = True) -> Estimate | None:
    """A cell's score and its interval; infinite where it has none; None without samples.

    ``are_shares``: a score without an error is a mean of scores of 0 to 100 over its samples, and
    not a figure of a corpus or a mean of groups.
    """
    if cell.score is None:
        return None
    if cell.column in LOWER_IS_BETTER:
        margin = math.inf if cell.error is None else Z * cell.error
        return Estimate(cell.score, cell.score - margin, cell.score + margin)
    if not cell.distribution and cell.error:
        margin = Z * cell.error
        return Estimate(cell.score, max(cell.score - margin, 0.0), min(cell.score + margin, 100.0))
    if not cell.distribution and not are_shares and cell.error is None:
        return Estimate(cell.score, -math.inf, math.inf)
    # One score alone: no spread is known of what has none.
    is_resampled = cell.num_samples >= _FEWEST_RESAMPLED and len(cell.distribution) > 1
    if cell.is_all_or_nothing or not is_resampled:
        return wilson(cell.score, cell.num_samples)
    scores, counts = np.asarray(cell.distribution).T
    seed = zlib.crc32(repr(cell.distribution).encode())  # the same samples, the same interval
    random, shares = np.random.default_rng(seed), counts / cell.num_samples
    means: list[float] = []
    while len(means) < _NUM_RESAMPLES:
        size = min(_NUM_RESAMPLES - len(means), max(_MOST_DRAWN // len(scores), 1))
        draws = random.multinomial(cell.num_samples, shares, size)
        means += (draws @ scores / cell.num_samples).tolist()
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]).tolist()
    return Estimate(cell.score, min(low, cell.score), max(high, cell.score))


def mean_estimate(cells: Sequence[ScoreCell], *, are_shares: bool = True) -> Estimate | None:
    """The mean of cells, each of the same weight; None where none has a score."""
    found = [one for cell in cells if (one := cell_estimate(cell, are_shares=are_shares))]
    if not found:
        return None
    value = sum(one.value for one in found) / len(found)
    below = math.hypot(*(one.value - one.low for one in found)) / len(found)
    above = math.hypot(*(one.high - one.value for one in found)) / len(found)
    return Estimate(value, value - below, value + above)


def has_shares(result: Result) -> bool:
    """Whether all scores of 0 to 100 are means over samples: of the harness some are of corpora."""
    return result.kind.name != "harness"


def column_estimate(result: Result, column: str) -> Estimate | None:
    """The mean of a column: over its tasks, or over all prompts where rows are depths."""
    cells = result.by_column.get(column, [])
    num_samples = sum(cell.num_samples for cell in cells)
    if result.kind.rows == "depths" and num_samples:
        total = math.fsum(round(one.num_samples * (one.score or 0), 9) for one in cells)
        return wilson(total / num_samples, num_samples)
    return mean_estimate(cells, are_shares=has_shares(result))


def effective_length(measured: Sequence[tuple[str, Estimate]], threshold: float) -> str:
    """The longest length up to which all scores are above ``threshold``, in words.

    RULER's effective length (arXiv 2404.06654, section 4) of lengths, ascending, and their scores,
    with what the intervals allow: ``64K (at least 32K, at most 128K)`` where the threshold lies
    within those of 64K and 128K, ``128K or more`` where no length fell below it, ``below 4K`` where
    the first one did.
    """
    names = [name for name, _ in measured]
    least, reached, most = (
        next((k for k, (_, one) in enumerate(measured) if figure(one) <= threshold), len(names))
        for figure in (lambda one: one.low, lambda one: one.value, lambda one: one.high)
    )
    text = names[reached - 1] if reached else f"below {names[0]}"
    if reached == len(names):
        text += " or more"
    bounds = []
    if least < reached:
        bounds.append(f"at least {names[least - 1]}" if least else f"perhaps below {names[0]}")
    if most > reached:
        bounds.append(f"at most {names[most - 1]}" if most < len(names) else "perhaps more")
    return f"{text} ({', '.join(bounds)})" if bounds else text
