"""A result: scores of one checkpoint on one benchmark, by row and column, and their conditions."""

import dataclasses
import datetime
import functools
import importlib.metadata
import math
import platform
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from pydantic_core import to_jsonable_python

_PACKAGES = ("megatron-core", "torch", "transformers", "tokenizers", "numpy", "matplotlib")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide figures."""
    from megatron_ultralong import __version__

    found = {"megatron-ultralong": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional one: it had no part in the figures
    return found


def now() -> str:
    """The date and time in UTC, to the second: ``2026-01-31T12:00:00+00:00``."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@dataclasses.dataclass(frozen=True)
class ModelRecord:
    """Which weights, and how they were run."""

    folder: str
    """As it was given."""
    engine: str
    """``megatron`` or ``transformers``."""
    precision: str
    """Of weights and activations: ``bf16`` or ``fp32``."""
    weights: str
    """Hash of the names, sizes and times of the weights' files: tells checkpoints of one name from
    each other."""
    num_parameters: int
    """Weights of the whole model."""


LOWER_IS_BETTER = frozenset({"loss", "perplexity"})
"""Columns whose scores are better when lower, and not of 100."""
_ROUNDING = 1e-6
LOSS = "loss"
"""The column of a loss by position."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A benchmark, and how its rows and columns are to be read."""

    name: str
    """Of its verb, its files and its journal."""
    title: str
    rows: Literal["tasks", "depths", "positions"] = "tasks"
    """What a row is: a task by its name; a depth in per cent of the text, ``33.3``; or positions
    ``start <= i < stop`` of a row of tokens, ``512-1024``."""
    columns: Literal["lengths", "limit", "scores"] = "scores"
    """What a column is: a length; the limit at which prompts are cut, one for a checkpoint; or
    another score of the same samples."""
    form: str = ""
    """Of the prompts, beside every figure."""


KINDS = {
    kind.name: kind
    for kind in (
        Kind("position_loss", "Loss by position", "positions"),
        Kind("passkey", "Passkey retrieval", "depths", "lengths", "InfiniteBench's form"),
        Kind("needle", "Needle retrieval", "depths", "lengths", "a code in running text"),
        Kind("ruler", "RULER", columns="lengths"),
        Kind("lv_eval", "LV-Eval", columns="lengths"),
        Kind("infinitebench", "InfiniteBench", columns="limit"),
        Kind("choices", "Multiple choice by likelihood"),
        Kind("chat", "Assistant's turns word for word", columns="lengths"),
    )
}
"""The verbs' own, in the order in which a report shows them. Files state theirs in full."""


@dataclasses.dataclass(frozen=True)
class ScoreCell:
    """Samples of one row and column."""

    row: str
    column: str
    num_samples: int
    score: float | None
    """Mean over the samples: 0 to 100, or of a loss nats per token; None where there is none."""
    error: float | None = None
    """One standard error of the mean, from the spread of the samples; None: not known."""
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Others of the same samples, such as ``num_prompt_tokens`` (their mean), ``num_truncated``
    (prompts from whose text the middle was left out) and ``token_accuracy``."""


def mean_cell(
    row: str, column: str, shares: Sequence[float], figures: Mapping[str, float] | None = None
) -> ScoreCell:
    """The cell of samples with scores of 0 to 1: ``[1, 0, 1]`` are 66.7, with an error of 33.3."""
    num = len(shares)
    error = 100 * statistics.stdev(shares) / math.sqrt(num) if num > 1 else None
    return ScoreCell(row, column, num, 100 * sum(shares) / num, error, figures or {})


@dataclasses.dataclass(frozen=True)
class Result:
    """Scores of one checkpoint on one benchmark."""

    kind: Kind
    config: Mapping[str, Any]
    """The flags, as plain values."""
    checkpoint: str
    max_positions: int
    """Positions the checkpoint was trained for."""
    cells: tuple[ScoreCell, ...]
    metrics: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Metric of every row, where rows are tasks."""
    notes: tuple[str, ...] = ()
    """Conditions that a reader has to know."""
    material: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What the samples were made of, files by their SHA-256."""
    num_packed_rows: int = 0
    """Rows of tokens that a loss by position was measured on."""
    date: str = dataclasses.field(default_factory=now)
    versions: Mapping[str, str] = dataclasses.field(default_factory=versions)
    model: ModelRecord | None = None
    """None: measured before results stated it."""

    def __post_init__(self) -> None:
        """Raise ValueError where rows, columns and flags are not what the kind says."""
        kind = self.kind.rows
        if not self.cells:
            raise ValueError("a result has at least one cell")
        if len(self._places) < len(self.cells):
            raise ValueError("two cells of one row and column")
        if kind != "positions" and any(c.num_samples < 1 or c.score is None for c in self.cells):
            raise ValueError("a cell without samples or score")
        shares = [c.score for c in self.cells if c.score and c.column not in LOWER_IS_BETTER]
        if not all(0 <= share < 100 + _ROUNDING for share in shares):
            raise ValueError(f"scores from {min(shares):g} to {max(shares):g}, not from 0 to 100")
        if kind == "tasks" and (missing := set(self.rows) - set(self.metrics)):
            raise ValueError(f"no metric of {sorted(missing)}")
        flag = {"positions": "split", "depths": "by"}.get(kind)
        if flag and not isinstance(self.config.get(flag), str):
            raise ValueError(f"no flag '{flag}'")
        if kind == "positions" and [*self.rows] != [position_row(*place) for place in self.bins]:
            raise ValueError(f"rows {self.rows} are no positions")
        if kind == "depths":
            if not all(0 <= float(row) <= 100 for row in self.rows):
                raise ValueError(f"rows {self.rows} are no depths in per cent")
            if {*self.columns} != {*map(str, self.lengths)}:
                raise ValueError(f"columns {self.columns} are no lengths")

    @property
    def rows(self) -> tuple[str, ...]:
        """Rows in the order they were asked."""
        return tuple(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns in the order they were asked."""
        return tuple(dict.fromkeys(cell.column for cell in self.cells))

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

    def cell(self, row: str, column: str) -> ScoreCell | None:
        """Samples of one row and column; None where there are none."""
        return self._places.get((row, column))

    def score(self, row: str, column: str) -> float | None:
        """Score of one row and column; None where there is none."""
        cell = self.cell(row, column)
        return cell.score if cell else None

    def is_beyond(self, column: str) -> bool:
        """Whether a column's length is beyond the positions that the checkpoint was trained for."""
        return column.isdecimal() and int(column) > self.max_positions

    def mean(self, column: str | None = None) -> float | None:
        """Mean of the rows' scores, of one column or over the columns' means."""
        names = self.columns if column is None else (column,)
        means = [
            sum(scores) / len(scores)
            for name in names
            if (scores := [c.score for c in self.cells if c.column == name and c.score is not None])
        ]
        return sum(means) / len(means) if means else None

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


def perplexity(loss: float) -> float:
    """``exp(loss)``; infinite where that is beyond a float."""
    return math.exp(loss) if loss < 700 else math.inf


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
