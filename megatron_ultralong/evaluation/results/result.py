"""A result: scores of one checkpoint on one benchmark, by row and column, and their conditions."""

import collections
import dataclasses
import datetime
import functools
import itertools
import math
import platform
import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from pydantic_core import to_jsonable_python

from megatron_ultralong.evaluation.results.model_record import (
    Count,
    ModelRecord,
    Name,
    Number,
    Text,
)
from megatron_ultralong.program.optional import installed_version

LOWER_IS_BETTER = frozenset(
    {"loss", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"}
    | {"brier_score", "ter"}
)
"""Columns whose scores are better when lower, and not of 100."""
LOWER_DIGITS = 3
"""Digits of these scores behind the point: bits per byte of two models differ by hundredths."""
_MOST_SCORES = 100_000
"""Different scores of the samples of a cell: the bootstrap draws thousands of counts of each."""
_ROUNDING = 1e-6
LOSS = "loss"
"""The column of a loss by position."""
_RANGES = {"accuracy": 1, "token_accuracy": 1, "num_prompt_tokens": 2**53}
"""Figures from 0 to a bound; ``num_truncated`` is at most the samples."""
_MOST_LOSS = 1e6
"""In nats per token; a perplexity of a word may be any number."""


def is_close(one: Any, other: float | None) -> bool:
    """Equal, except for the rounding of sums; None is equal to None alone."""
    if not isinstance(one, int | float) or other is None:
        return one is other
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
        if not is_close(value, expected):
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


_PACKAGES = ("megatron-core", "torch", "transformers", "tokenizers", "numpy", "matplotlib")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide figures."""
    from megatron_ultralong import __version__

    found = {"megatron-ultralong": __version__, "python": platform.python_version()}
    # One that is not there is optional: it had no part in the figures.
    return found | {name: its for name in _PACKAGES if (its := installed_version(name))}


def now() -> str:
    """The date and time in UTC, to the second: ``2026-01-31T12:00:00+00:00``."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A benchmark, and how its rows and columns are to be read."""

    name: Name
    """Of its verb, its files and its journal."""
    title: Name
    rows: Literal["tasks", "depths", "positions"] = "tasks"
    """What a row is: a task by its name; a depth in per cent of the text, ``33.3``; or positions
    ``start <= i < stop`` of a row of tokens, ``512-1024``."""
    columns: Literal["lengths", "limit", "scores"] = "scores"
    """What a column is: a length, ``4096`` tokens or ``16k`` words; the limit at which prompts are
    cut, one for a checkpoint; or another score of the same samples."""
    form: Text = ""
    """Of the prompts, beside every figure."""


KINDS = {
    kind.name: kind
    for kind in (
        Kind("position_loss", "Loss by position", "positions"),
        Kind("passkey", "Passkey retrieval", "depths", "lengths", "InfiniteBench's form"),
        Kind("needle", "Needle retrieval", "depths", "lengths", "a code in running text"),
        Kind("ruler", "RULER", columns="lengths"),
        Kind("mrcr", "MRCR", columns="lengths"),
        Kind("graphwalks", "GraphWalks", columns="lengths"),
        Kind("ruler2", "RULER v2", columns="lengths"),
        Kind("nolima", "NoLiMa", columns="lengths"),
        Kind("longbench_v2", "LongBench v2"),
        Kind("lv_eval", "LV-Eval", columns="lengths"),
        Kind("infinitebench", "InfiniteBench", columns="limit"),
        Kind("choices", "Multiple choice by likelihood"),
        Kind("harness", "lm-evaluation-harness"),
        Kind("chat", "Assistant's turns word for word", columns="lengths"),
    )
}
"""The verbs' own, in the order in which a report shows them. Files state theirs in full."""


_LENGTH = re.compile(r"[1-9][0-9]{0,14}k?")


def length_of(column: str) -> int:
    """The number of a column that is a length: ``4096 -> 4096`` tokens, ``16k -> 16`` (words)."""
    return int(column.removesuffix("k"))


@dataclasses.dataclass(frozen=True)
class Result:
    """Scores of one checkpoint on one benchmark."""

    kind: Kind
    config: Mapping[str, Any]
    """The flags, as plain values."""
    checkpoint: Name
    max_positions: Number
    """Positions the checkpoint was trained for."""
    cells: tuple[ScoreCell, ...]
    metrics: Mapping[Name, Name] = dataclasses.field(default_factory=dict)
    """Metric of every row, where rows are tasks."""
    notes: tuple[Text, ...] = ()
    """Conditions that a reader has to know."""
    material: Mapping[Name, Text] = dataclasses.field(default_factory=dict)
    """What the samples were made of, files by their SHA-256."""
    num_packed_rows: Count = 0
    """Rows of tokens that a loss by position was measured on."""
    date: Name = dataclasses.field(default_factory=now)
    versions: Mapping[Name, Name] = dataclasses.field(default_factory=versions)
    model: ModelRecord | None = None
    """None: measured before results stated it."""
    asked: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """All that decides the figures, for comparison with another command's; empty: not stated."""

    def __post_init__(self) -> None:
        """Raise ValueError where rows, columns and flags are not what the kind says."""
        if not self.cells:
            raise ValueError("cells is empty: a result has at least one cell")
        if len(self._places) < len(self.cells):
            places = collections.Counter((cell.row, cell.column) for cell in self.cells)
            (row, column), _ = places.most_common(1)[0]
            raise ValueError(f"two cells of one row and column, {row!r} and {column!r}")
        datetime.datetime.fromisoformat(self.date)
        if self.kind.columns != "scores":
            for column in dict.fromkeys(cell.column for cell in self.cells):
                if not _LENGTH.fullmatch(column):
                    raise ValueError(f"column {column!r} is not a length such as 4096 or 16k")
        empty = [cell for cell in self.cells if cell.score is None]
        if empty and self.kind.rows != "positions":
            raise ValueError(f"no score of {empty[0].row!r}, {empty[0].column!r}")
        getattr(self, f"_check_{self.kind.rows}")()

    def _check_flag(self, flag: str, *values: str) -> None:
        if (value := self.config.get(flag)) not in values:
            raise ValueError(f"flag '{flag}' is {value!r}, not {' or '.join(values)}")

    def _check_tasks(self) -> None:
        if missing := set(self.rows) - set(self.metrics):
            raise ValueError(f"no metric of {sorted(missing)}")

    def _check_depths(self) -> None:
        self._check_flag("by", "argmax", "decoding")
        for cell in self.cells:
            depth, hits = float(cell.row), cell.num_samples * (cell.score or 0) / 100
            if not 0 <= depth <= 100 or cell.row != depth_row(depth):
                raise ValueError(f"row {cell.row!r} is not a depth in per cent")
            if not is_close(hits, round(hits)):
                raise ValueError(f"{cell.score:g} % of {cell.num_samples} prompts is {hits:g} hits")

    def _check_positions(self) -> None:
        self._check_flag("split", "valid", "train")
        if self.num_packed_rows < 1:
            raise ValueError(f"num_packed_rows is {self.num_packed_rows}, not at least 1")
        end = 0
        for row, (start, stop) in zip(self.rows, self.bins, strict=True):
            if row != position_row(start, stop) or start < end:
                raise ValueError(f"row {row!r} is not of positions from {end} on")
            end = stop
        if {*self.columns} != {LOSS}:
            raise ValueError(f"columns {self.columns} are not '{LOSS}'")

    @property
    def rows(self) -> tuple[str, ...]:
        """Rows in the order they were asked."""
        return tuple(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> tuple[str, ...]:
        """Lengths ascending; other columns in the order they were asked."""
        return tuple(self.by_column)

    @property
    def depths(self) -> tuple[str, ...]:
        """Rows that are depths in per cent, ascending."""
        return tuple(sorted(self.rows, key=float))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Columns that are lengths in tokens, ascending; others are left out."""
        return tuple(sorted(int(column) for column in self.columns if column.isdecimal()))

    @property
    def bins(self) -> tuple[tuple[int, int], ...]:
        """Rows that are positions, ``start <= i < stop``, in their order."""
        return tuple(map(positions, self.rows))

    @property
    def num_positions(self) -> int:
        """The end of the last bin: tokens of a row."""
        return max(stop for _, stop in self.bins)

    @functools.cached_property
    def _places(self) -> dict[tuple[str, str], ScoreCell]:
        return {(cell.row, cell.column): cell for cell in self.cells}

    @functools.cached_property
    def by_column(self) -> dict[str, list[ScoreCell]]:
        """Cells in the order they were asked, by their columns, whose order is :attr:`columns`'."""
        found: dict[str, list[ScoreCell]] = {}
        for cell in self.cells:
            found.setdefault(cell.column, []).append(cell)
        # One task may have lengths that the task before it has not.
        order = found if self.kind.columns == "scores" else sorted(found, key=length_of)
        return {column: found[column] for column in order}

    def cell(self, row: str, column: str) -> ScoreCell | None:
        """Samples of one row and column; None where there are none."""
        return self._places.get((row, column))

    def score(self, row: str, column: str) -> float | None:
        """Score of one row and column; None where there is none."""
        cell = self.cell(row, column)
        return cell.score if cell else None

    def is_beyond(self, column: str) -> bool:
        """Whether a column's length is beyond the positions that the checkpoint was trained for.

        The end of a bin may be, where no question in it is: longer ones were not allowed.
        """
        is_exact = self.kind.rows != "tasks"
        may_be = is_exact or self.config.get("beyond_trained_positions", True)
        return bool(may_be) and column.isdecimal() and int(column) > self.max_positions

    def mean(self, column: str | None = None) -> float | None:
        """Mean of the rows' scores, of one column or over the columns' means."""
        if column is None:
            scores = [self.mean(name) for name in self.columns]
        else:
            scores = [cell.score for cell in self.by_column.get(column, ())]
        known = [score for score in scores if score is not None]
        return sum(known) / len(known) if known else None

    def pooled(
        self, rows: Collection[str] | None = None, columns: Collection[str] | None = None
    ) -> float | None:
        """Mean over all samples of these rows and columns, None: of all; None without samples.

        Sums are rounded to 1e-9, so that whole numbers of hits stay whole: 4 of 5 are 80.
        """
        found = [
            (cell.num_samples, round(cell.num_samples * cell.score, 9))
            for cell in self.cells
            if (rows is None or cell.row in rows)
            and (columns is None or cell.column in columns)
            and cell.score is not None
        ]
        num_samples = sum(number for number, _ in found)
        return math.fsum(total for _, total in found) / num_samples if num_samples else None

    def retrieved(self, lengths: Collection[int], depth: str | None = None) -> float | None:
        """Per cent retrieved over all prompts of these lengths, at one depth or all."""
        return self.pooled([depth] if depth else None, [str(length) for length in lengths])

    def mean_loss(self, start: int = 0, stop: int | None = None) -> float | None:
        """Mean over all predictions of the bins that lie within ``start`` to ``stop``."""
        rows = [
            row
            for row, (first, end) in zip(self.rows, self.bins, strict=True)
            if start <= first and (stop is None or end <= stop)
        ]
        return self.pooled(rows, [LOSS])

    def loss(self, place: tuple[int, int]) -> ScoreCell | None:
        """The loss at positions ``start <= i < stop``; None where no prediction counts."""
        cell = self.cell(position_row(*place), LOSS)
        return None if cell is None or cell.score is None else cell


def positions(row: str) -> tuple[int, int]:
    """``512-1024 -> (512, 1024)``."""
    start, stop = map(int, row.split("-"))
    if not 0 <= start < stop:
        raise ValueError(f"positions {row} are none")
    return start, stop


def position_row(start: int, stop: int) -> str:
    """``(512, 1024) -> 512-1024``."""
    return f"{start}-{stop}"


def depth_row(depth: float) -> str:
    """``33.3 -> 33.3``, ``50.0 -> 50``: fifteen digits, so that it is read back the same."""
    return f"{depth:.15g}"


def plain_values(config: Any) -> dict[str, Any]:
    """The fields of a configuration as JSON holds them: lists for tuples, strings for paths."""
    values: dict[str, Any] = to_jsonable_python(config)
    return values
