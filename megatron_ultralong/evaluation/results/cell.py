"""The cell of a result: scores of samples of one row and column, and what is possible of them."""

import collections
import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, StringConstraints

# What a file is held to (results/file.py); pydantic reads these types.
Name = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Text = Annotated[str, StringConstraints(max_length=10_000)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Number = Annotated[int, Field(ge=1, le=2**53)]
"""Of things that are there."""

LOWER_IS_BETTER = frozenset(
    {"loss", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"}
    | {"brier_score", "ter"}
)
"""Columns whose scores are better when lower, and not of 100."""
_MOST_SCORES = 100_000
"""Different scores of the samples of a cell: the bootstrap draws thousands of counts of each."""
_ROUNDING = 1e-6
LOSS = "loss"
"""The column of a loss by position."""
_RANGES = {"accuracy": 1, "token_accuracy": 1, "num_prompt_tokens": 2**53}
"""Figures from 0 to a bound; ``num_truncated`` is at most the samples."""
_MOST_LOSS = 1e6
"""In nats per token; a perplexity of a word may be any number."""


def is_close(one: float, other: float) -> bool:
    """Equal, except for the rounding of sums."""
    return math.isclose(one, other, rel_tol=_ROUNDING, abs_tol=_ROUNDING)


@dataclasses.dataclass(frozen=True)
class ScoreCell:
    """Samples of one row and column."""

    row: Name
    column: Name
    num_samples: Count
    score: float | None
    """Mean over the samples: 0 to 100, or of a loss nats per token; None where there is none."""
    error: float | None = None
    """One standard error of the mean, from the spread of the samples; None: not known."""
    figures: Mapping[Name, float] = dataclasses.field(default_factory=dict)
    """Others of the same samples, such as ``num_prompt_tokens`` (their mean), ``num_truncated``
    (prompts from whose text the middle was left out) and ``token_accuracy``."""
    distribution: tuple[tuple[float, Number], ...] = ()
    """Scores of the samples and how many have each: ``((0.0, 3), (100.0, 7))``; empty: not known.
    """

    def __post_init__(self) -> None:
        """Raise ValueError where figures are impossible, or contradict each other."""
        is_loss = self.column in LOWER_IS_BETTER
        most = {LOSS: _MOST_LOSS}.get(self.column, math.inf if is_loss else 100)
        self._within("score", self.score, most)
        self._within("error", self.error, most if is_loss else 50)  # half of the range
        if (self.score is None) != (self.num_samples == 0):
            raise ValueError(f"score {self.score} of {self.num_samples} samples")
        for name, figure in self.figures.items():
            self._within(name, figure, {**_RANGES, "num_truncated": self.num_samples}.get(name))
        if self.column == LOSS and self.score is not None and "perplexity" in self.figures:
            self._equal("perplexity", self.figures["perplexity"], perplexity(self.score))
        if self.distribution:
            self._check_distribution()

    def _within(self, name: str, value: float | None, most: float | None) -> None:
        if not (value is None or most is None or 0 <= value <= most + _ROUNDING):
            raise ValueError(f"{name} is {value:g}, not from 0 to {most:g}")

    def _equal(self, name: str, value: float | None, expected: float | None) -> None:
        if value != expected and (
            value is None or expected is None or not is_close(value, expected)
        ):
            raise ValueError(f"{name} is {value}, not {expected} as its samples have it")

    def _check_distribution(self) -> None:
        scores = [score for score, _ in self.distribution]
        if len(scores) > _MOST_SCORES:
            raise ValueError(f"distribution has {len(scores)} scores, at most {_MOST_SCORES}")
        for score in scores:
            self._within("a score of distribution", score, 100)
        if not all(one < other for one, other in itertools.pairwise(scores)):
            raise ValueError("the scores of distribution are not different and ascending")
        num = sum(count for _, count in self.distribution)
        if num != self.num_samples:
            raise ValueError(f"num_samples is {self.num_samples}, not {num} as its samples have it")
        mean = math.fsum(score * count for score, count in self.distribution) / num
        self._equal("score", self.score, mean)
        squares = math.fsum(count * (score - mean) ** 2 for score, count in self.distribution)
        self._equal("error", self.error, (squares / (num - 1) / num) ** 0.5 if num > 1 else None)

    @property
    def is_all_or_nothing(self) -> bool:
        """Whether each sample is known to be all right or all wrong."""
        return bool(self.distribution) and {s for s, _ in self.distribution} <= {0.0, 100.0}


def mean_cell(
    row: str, column: str, shares: Sequence[float], figures: Mapping[str, float] | None = None
) -> ScoreCell:
    """The cell of samples with scores of 0 to 1: ``[1, 0, 1]`` are 66.7, with an error of 33.3."""
    num = len(shares)
    error = 100 * statistics.stdev(shares) / math.sqrt(num) if num > 1 else None
    found = tuple(sorted(collections.Counter(100.0 * share for share in shares).items()))
    return ScoreCell(row, column, num, 100 * sum(shares) / num, error, figures or {}, found)


def perplexity(loss: float) -> float:
    """``exp(loss)``; infinite where that is beyond a float."""
    return math.exp(loss) if loss < 700 else math.inf
