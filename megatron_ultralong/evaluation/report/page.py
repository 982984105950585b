"""The report as one HTML page that needs no other file, in light and dark."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from megatron_ultralong.evaluation.report.section import Picture, Section
from megatron_ultralong.evaluation.report.style import STYLE
from megatron_ultralong.evaluation.report.table import Cell, ReportTable, words
from megatron_ultralong.evaluation.verdicts import Check

if TYPE_CHECKING:
    from megatron_ultralong.evaluation.report.report import Report

_PIXELS_A_DOT = 0.8
"""A picture's letters are then as large as the page's."""
_BEST = "The best figure of a line is highlighted; that is no claim that the difference is certain."


def report_page(report: Report) -> str:
    """The page of ``report``."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(_body(report))
        + "\n</body>\n</html>\n"
    )


def _body(report: Report) -> Iterator[str]:
    yield f"<h1>{escape(report.title)}</h1>"
    if report.summary:
        yield f"<p>{escape(report.summary)}</p>"
    facts = [f"<code>{escape(report.command)}</code>", escape(report.machine), escape(report.date)]
    yield f'<p class="note">{" &middot; ".join(filter(None, facts))}</p>'
    yield _notices(report.gathered.notices)
    if len(report.sections) > 1:
        yield _contents(report.sections)
    if report.checks:
        num_passed = sum(check.passed for check in report.checks)
        yield f"<h2>Checks: {num_passed} of {len(report.checks)} passed</h2>"
        yield _checks(report.checks)
    for number, section in enumerate(report.sections):
        yield from _section(section, number)
    yield '<div class="two">'
    if report.settings:
        settings = [(name, str(value)) for name, value in report.settings.items()]
        yield f"<div><h2>Recipe</h2>{_pairs(settings)}</div>"
    if report.wall_times:
        yield f"<div><h2>Wall time</h2>{_times(report)}</div>"
    yield f"<div><h2>Versions</h2>{_pairs(report.versions.items())}</div></div>"


def _notices(notices: Sequence[str]) -> str:
    if not notices:
        return ""
    return f'<ul class="notices">{"".join(f"<li>{escape(notice)}</li>" for notice in notices)}</ul>'


def _contents(sections: Sequence[Section]) -> str:
    links = "".join(
        f'<li><a href="#section-{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(sections)
    )
    return f"<nav><ul>{links}</ul></nav>"


def _section(section: Section, number: int) -> Iterator[str]:
    yield f'<h2 id="section-{number}">{escape(section.title)}</h2>'
    yield _notices(section.remarks)
    for picture in section.pictures:
        yield _figure(picture)
    for table in section.tables:
        yield _titled(table)
    if section.paper:
        yield _titled(section.paper)
    title = escape(section.conditions.title)
    yield f'<details open class="conditions"><summary>{title}</summary>'
    yield f"{_table(section.conditions)}</details>"


def _titled(table: ReportTable) -> str:
    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    has_best = any(cell.is_best for row in table.rows + table.footer for cell in row)
    note = " ".join(filter(None, (table.note, _BEST if has_best else "")))
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"{title}{_table(table) if table.rows else ''}{below}"


def _table(table: ReportTable) -> str:
    head = _line("th", words(*table.header), table)
    body = "".join(_line("td", row, table) for row in table.rows)
    foot = "".join(_line("td", row, table) for row in table.footer)
    return (
        '<div class="scroll"><table>'
        + (f"<thead>{head}</thead>" if any(table.header) else "")
        + f"<tbody>{body}</tbody>"
        + (f"<tfoot>{foot}</tfoot>" if foot else "")
        + "</table></div>"
    )


def _line(tag: str, cells: Sequence[Cell], table: ReportTable) -> str:
    parts = []
    for place, cell in enumerate(cells):
        kind = ' class="number"' if table.holds_figures(place) else ""
        rest = len(table.header) - len(cells)
        span = f' colspan="{rest + 1}"' if rest and place == len(cells) - 1 else ""
        parts.append(f"<{tag}{kind}{span}>{_content(cell)}</{tag}>")
    return f"<tr>{''.join(parts)}</tr>"


def _content(cell: Cell) -> str:
    names = [name for name, holds in (("best", cell.is_best), ("beyond", cell.is_beyond)) if holds]
    text = escape(cell.text)
    return f'<span class="{" ".join(names)}">{text}</span>' if names else text


def _checks(checks: Sequence[Check]) -> str:
    head = "<tr><th></th><th>check</th><th>measured</th><th>asked for</th></tr>"
    rows = []
    for check in checks:
        verdict = "pass" if check.passed else "fail"
        rows.append(
            f'<tr><td><span class="verdict {verdict}">{verdict}</span></td>'
            f"<td>{escape(check.name)}</td><td>{escape(check.figure)}</td>"
            f"<td>{escape(check.bound)}</td></tr>"
        )
    body = "".join(rows)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _times(report: Report) -> str:
    rows = tuple(words(step, f"{seconds:.1f} s") for step, seconds in report.wall_times.items())
    memory = report.peak_memory_gib
    peak = "" if memory is None else f", {memory:.2f} GiB at the peak"
    total = words("all", f"{sum(report.wall_times.values()):.1f} s{peak}")
    return _table(ReportTable(("", ""), rows, footer=(total,)))


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return _table(ReportTable(("", ""), tuple(words(*pair) for pair in pairs), figures=(0, 0)))


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    alt = escape(picture.description)
    pixels = int.from_bytes(picture.png[16:20], "big")  # the width in a PNG's header
    width = round(_PIXELS_A_DOT * pixels)
    return f'<figure><img alt="{alt}" width="{width}" src="data:image/png;base64,{data}"></figure>'
