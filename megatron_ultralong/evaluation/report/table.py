"""Tables and sections of the report, as the page and the terminal both show them."""

import dataclasses
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megatron_ultralong.evaluation.options import RULER_THRESHOLD
from megatron_ultralong.evaluation.report.measurement import Measurement, conditions
from megatron_ultralong.evaluation.results import style
from megatron_ultralong.evaluation.results.interval import Estimate
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.program.picture import drawing


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell."""

    text: str
    is_best: bool = False
    """Of its line."""
    is_beyond: bool = False
    """The positions that its checkpoint was trained for."""


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


def line(
    first: Sequence[str],
    texts: Sequence[str],
    beyond: Sequence[bool],
    estimates: Sequence[Estimate | None] = (),
    *,
    lower_is_better: bool = False,
) -> tuple[Cell, ...]:
    """Words, and a figure of every checkpoint: an empty one is a dash, the best are marked.

    ``beyond`` is whether a figure is of more positions than its checkpoint was trained for. Without
    ``estimates`` of the figures none is marked.
    """
    pairs = zip(texts, beyond, strict=True)
    cells = [Cell(text, is_beyond=is_beyond) if text else NOTHING for text, is_beyond in pairs]
    return (*words(*first), *with_best(cells, estimates, lower_is_better=lower_is_better))


def with_best(
    cells: Sequence[Cell],
    estimates: Sequence[Estimate | None],
    *,
    lower_is_better: bool = False,
) -> tuple[Cell, ...]:
    """A line whose best cells are marked: the best one and those that the noise does not set apart.

    Nothing is marked where there is but one, or the samples set none apart from the best.
    """
    known = [estimate for estimate in estimates if estimate]
    if not known:
        return tuple(cells)
    best = (min if lower_is_better else max)(known, key=lambda one: one.value)
    if not any(one.differs_from(best) for one in known):
        return tuple(cells)
    return tuple(
        dataclasses.replace(cell, is_best=one is not None and not one.differs_from(best))
        for cell, one in zip(cells, estimates, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG."""

    name: str
    """Of its file, without the ending except for signs that no name of a file has."""
    png: bytes
    narrow_png: bytes
    """The same for a phone."""
    description: str
    """For those who do not see it."""


@dataclasses.dataclass(frozen=True)
class Section:
    """Pictures and tables of one benchmark, the paper's figures, and all conditions."""

    title: str
    draw: Callable[[], tuple[Picture, ...]]
    tables: tuple[ReportTable, ...]
    conditions: ReportTable
    paper: ReportTable | None = None
    """The paper's figures beside those that can be compared with them."""
    remarks: tuple[str, ...] = ()
    effective: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Effective length by the label of the column; empty: the benchmark has no lengths."""

    @functools.cached_property
    def pictures(self) -> tuple[Picture, ...]:
        """Drawn once, and only for a page."""
        return self.draw()


def picture(
    name: str, title: str, results: Sequence[Result], draw: Callable[[Any], None]
) -> tuple[Picture, ...]:
    """What ``draw`` writes of ``results`` into a file; none where it cannot be drawn."""
    file, narrow_file = io.BytesIO(), io.BytesIO()
    what = f"{title} of {', '.join(result.checkpoint for result in results)}"
    with drawing(what):
        draw(file)
        with style.narrow():
            draw(narrow_file)
        return (Picture(name, file.getvalue(), narrow_file.getvalue(), what),)
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


def effective_table(sections: Sequence[Section], threshold: float) -> ReportTable | None:
    """Effective lengths: a line for each benchmark that has lengths, checkpoints side by side."""
    found = [section for section in sections if section.effective]
    labels = list(dict.fromkeys(label for section in found for label in section.effective))
    if not labels:
        return None
    whose = " (RULER's threshold, of Llama-2-7B at 4K)" if threshold == RULER_THRESHOLD else ""
    return ReportTable(
        header=("benchmark", *labels),
        rows=tuple(
            words(section.title, *(section.effective.get(label, NOTHING.text) for label in labels))
            for section in found
        ),
        title="Effective length",
        note=(
            f"The longest length up to which every score is above {threshold:g} of 100{whose}; "
            "--threshold sets another. In brackets what the samples allow: the lengths up to which "
            "the lower and the upper end of the 95 % interval are above it (Wilson; of partial "
            "scores the bootstrap over samples; of means over tasks by the squares of the arms, "
            "Zou and Donner 2008)."
        ),
    )
