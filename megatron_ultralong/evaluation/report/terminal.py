"""The report's tables in the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from megatron_ultralong.evaluation.report.section import OF_THE_CHECKPOINT
from megatron_ultralong.evaluation.report.table import Cell, ReportTable
from megatron_ultralong.program.terminal import Console

if TYPE_CHECKING:
    from megatron_ultralong.evaluation.report.report import Report


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the results, in what conditions they differ, and the checks, as tables."""
    console = console or Console()
    console.print(Text(report.title, style="bold"))
    for notice in report.gathered.notices:
        console.print(Text(f"note: {notice}", style="yellow"))
    for section in report.sections:
        console.print(Text(f"\n{section.title}", style="bold"))
        for remark in section.remarks:
            console.print(Text(remark, style="yellow"))
        for table in section.tables:
            console.print(_table(table))
        if section.paper:
            paper = section.paper
            console.print(_table(paper) if paper.rows else Text(f"{paper.title}. {paper.note}"))
        if differing := _differing(section.conditions):
            console.print(_table(differing))
    if report.wall_times:
        console.print(_times_table(report))
    if report.checks:
        console.print(_checks_table(report))


def _differing(conditions: ReportTable) -> ReportTable | None:
    """Conditions in which columns differ, but for those in which checkpoints always do."""
    rows = tuple(
        row for row in conditions.rows if len(row) > 2 and row[0].text not in OF_THE_CHECKPOINT
    )
    title = "Conditions that differ; the page has all"
    return dataclasses.replace(conditions, rows=rows, title=title) if rows else None


def _table(table: ReportTable) -> Table:
    shown = Table(title=table.title or None, caption=table.note or None, min_width=60)
    for place, name in enumerate(table.header):
        shown.add_column(name, justify="right" if table.holds_figures(place) else "left")
    for row in table.rows:
        shown.add_row(*_cells(row))
    if table.footer:
        shown.add_section()
    for row in table.footer:
        shown.add_row(*_cells(row))
    return shown


def _cells(row: tuple[Cell, ...]) -> Iterator[Text]:
    """The best of a line bold, and with a star for where there is no bold."""
    for cell in row:
        colour = "red" if cell.is_beyond else "green" if cell.is_best else ""
        style = f"bold {colour}" if cell.is_best else colour
        yield Text(f"{cell.text} *" if cell.is_best else cell.text, style=style)


def _checks_table(report: Report) -> Table:
    table = Table(title="Checks")
    for column in ("", "check", "measured", "asked for"):
        table.add_column(column)
    for check in report.checks:
        verdict = Text("pass", style="green") if check.passed else Text("FAIL", style="bold red")
        table.add_row(verdict, check.name, check.figure, check.bound)
    return table


def _times_table(report: Report) -> Table:
    memory = report.peak_memory_gib
    peak = "" if memory is None else f", peak memory {memory:.2f} GiB"
    table = Table(title=f"Wall times{peak}")
    table.add_column("step")
    table.add_column("seconds", justify="right")
    for step, seconds in report.wall_times.items():
        table.add_row(step, f"{seconds:.1f}")
    table.add_section()
    table.add_row("all", f"{sum(report.wall_times.values()):.1f}")
    return table
