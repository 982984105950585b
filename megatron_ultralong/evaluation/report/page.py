"""The report as one HTML page that needs no other file, in light and dark."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from megatron_ultralong.evaluation.report.report import Report
from megatron_ultralong.evaluation.report.section import Picture
from megatron_ultralong.evaluation.report.table import ReportTable, words

_PIXELS_A_DOT = 0.8
"""A picture's letters are then as large as the page's."""
_BEST = "The best figure of a line is highlighted; that is no claim that the difference is certain."


def report_page(report: Report) -> str:
    """The page of ``report``; whatever results call themselves is text in it, never markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html")
    return page.render(
        report=report,
        endings=list(_endings(report)),
        words=words,
        note=_note,
        width=_width,
        base64=lambda data: base64.b64encode(data).decode("ascii"),
    )


def _note(table: ReportTable) -> str:
    """How figures are to be read, the marked ones too."""
    has_best = any(cell.is_best for row in table.rows + table.footer for cell in row)
    return " ".join(filter(None, (table.note, _BEST if has_best else "")))


def _width(picture: Picture) -> int:
    pixels = int.from_bytes(picture.png[16:20], "big")  # the width in a PNG's header
    return round(_PIXELS_A_DOT * pixels)


def _endings(report: Report) -> Iterator[tuple[str, ReportTable]]:
    """Tables at the foot of the page, by their titles."""
    if report.settings:
        yield "Recipe", _pairs(report.settings)
    if report.wall_times:
        rows = tuple(words(step, f"{seconds:.1f} s") for step, seconds in report.wall_times.items())
        memory = report.peak_memory_gib
        peak = "" if memory is None else f", {memory:.2f} GiB at the peak"
        total = words("all", f"{sum(report.wall_times.values()):.1f} s{peak}")
        yield "Wall time", ReportTable(("", ""), rows, footer=(total,))
    yield "Versions", _pairs(report.versions)


def _pairs(values: Mapping[str, Any]) -> ReportTable:
    rows = tuple(words(name, str(value)) for name, value in values.items())
    return ReportTable(("", ""), rows, figures=(0, 0))
