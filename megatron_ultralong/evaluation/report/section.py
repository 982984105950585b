"""A section of the report: one benchmark under one set of conditions."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

from megatron_ultralong.evaluation.report.measurement import Measurement, conditions
from megatron_ultralong.evaluation.report.table import ReportTable, words

OF_THE_CHECKPOINT = {"checkpoint", "folder", "model", "trained positions", "date", "file"}
"""Conditions in which checkpoints differ from each other anyway."""


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


def picture(name: str, description: str, draw: Callable[[Any], None]) -> Picture:
    """What ``draw`` writes into a file."""
    file = io.BytesIO()
    draw(file)
    return Picture(name, file.getvalue(), description)


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
