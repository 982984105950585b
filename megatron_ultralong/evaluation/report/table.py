"""Tables and sections of the report, as the page and the terminal both show them."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

from megatron_ultralong.evaluation.report.measurement import Measurement, conditions
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.program.picture import drawing


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell."""

    text: str
    is_best: bool = False
    """Whether it is the best of its line."""
    is_beyond: bool = False
    """Whether it is beyond the positions that its checkpoint was trained for."""


@dataclasses.dataclass(frozen=True)
class ReportTable:
    """Lines of cells under a header, checkpoints side by side."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    """Where a line is short, its last cell stands for all columns to the right."""
    figures: tuple[int, int] | None = None
    """First column that holds figures, and the first after them; None: all but the first."""
    footer: tuple[tuple[Cell, ...], ...] = ()
    title: str = ""
    note: str = ""
    """How the figures are to be read."""

    def holds_figures(self, column: int) -> bool:
        """Whether a column holds figures, not words."""
        start, stop = self.figures or (1, len(self.header))
        return start <= column < stop


NOTHING = Cell("–")  # noqa: RUF001 - a dash where there is no figure


def words(*texts: str) -> tuple[Cell, ...]:
    """Cells of plain text."""
    return tuple(map(Cell, texts))


def with_best(
    cells: Sequence[Cell],
    figures: Sequence[float | None],
    digits: int,
    *,
    lower_is_better: bool = False,
) -> tuple[Cell, ...]:
    """A line whose best figures are marked: ``figures=[1, 3, None, 3]`` marks the second and last.

    Figures count as they are shown, with ``digits`` after the point. Nothing is marked where all
    are equal, or there is but one.
    """
    shown = [None if figure is None else round(figure, digits) for figure in figures]
    known = [figure for figure in shown if figure is not None]
    if len(known) < 2 or min(known) == max(known):
        return tuple(cells)
    best = min(known) if lower_is_better else max(known)
    return tuple(
        dataclasses.replace(cell, is_best=figure == best)
        for cell, figure in zip(cells, shown, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG."""

    name: str
    """Of its file, without the ending."""
    png: bytes
    description: str
    """For those who do not see it."""


@dataclasses.dataclass(frozen=True)
class Section:
    """Pictures and tables of one benchmark, the paper's figures, and all conditions."""

    title: str
    pictures: tuple[Picture, ...]
    tables: tuple[ReportTable, ...]
    conditions: ReportTable
    paper: ReportTable | None = None
    """The paper's figures beside those that can be compared with them."""
    remarks: tuple[str, ...] = ()


def picture(
    name: str, title: str, results: Sequence[Result], draw: Callable[[Any], None]
) -> tuple[Picture, ...]:
    """What ``draw`` writes of ``results`` into a file; none where it cannot be drawn."""
    file = io.BytesIO()
    labels = ", ".join(result.checkpoint for result in results)
    what = f"{title} of {labels}"
    with drawing(what):
        draw(file)
        return (Picture(name, file.getvalue(), what),)
    return ()


def conditions_table(measurements: Sequence[Measurement]) -> ReportTable:
    """Conditions of every column; a line in which all agree has one cell for all."""
    found = [conditions(one) for one in measurements]
    names = list(dict.fromkeys(name for one in found for name in one))
    rows = []
    for name in names:
        values = [one.get(name, "–") for one in found]  # noqa: RUF001
        rows.append(words(name, *(values[:1] if len(set(values)) == 1 else values)))
    return ReportTable(
        header=("condition", *(one.label for one in measurements)),
        rows=tuple(rows),
        figures=(0, 0),
        title="Conditions",
    )
