"""``evaluate report``: a page that needs no other file, every figure as JSON, terminal tables."""

import base64
import dataclasses
import itertools
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from rich.table import Table
from rich.text import Text

from megatron_ultralong.evaluation.options import ReportConfig
from megatron_ultralong.evaluation.report.report import Report, gather_report
from megatron_ultralong.evaluation.report.table import Cell, Picture, ReportTable, words
from megatron_ultralong.evaluation.results.file import write_json
from megatron_ultralong.evaluation.results.result import plain_values
from megatron_ultralong.program import fields, output
from megatron_ultralong.program.errors import escaped
from megatron_ultralong.program.terminal import Console

_PIXELS_A_DOT = 0.8
"""A picture's letters are then as large as the page's."""
_LONG = 11
"""Letters of a word from which on it may be broken anywhere, so that it fits a phone."""
_LONGEST_NAME = 200
"""Letters of a file's name; a disk takes 255, with ``.png``."""
_OF_THE_CHECKPOINT = {"checkpoint", "folder", "model", "trained positions", "date", "file"}
"""Conditions in which checkpoints differ from each other anyway."""
_BEST = (
    "Highlighted: the best value of a row, and those that the samples do not set apart from it "
    "(95 % interval of the difference, Newcombe 1998, as if other questions had been asked)."
)


def report_page(report: Report) -> str:
    """The page of ``report``; whatever results call themselves is text in it, never markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # texts without what hides or turns them around; markup is the page's own
        finalize=lambda value: escaped(value) if type(value) is str else value,
    )
    return environment.get_template("page.html").render(
        report=report,
        endings=list(_endings(report)),
        words=words,
        note=_note,
        is_long=lambda text: any(len(word) > _LONG for word in text.split()),
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
        yield "Wall time", _times(report)
    yield "Versions", _pairs(report.versions)


def _times(report: Report) -> ReportTable:
    rows = tuple(words(step, f"{seconds:.1f} s") for step, seconds in report.wall_times.items())
    memory = report.peak_memory_gib
    peak = "" if memory is None else f", {memory:.2f} GiB at the peak"
    total = words("all", f"{sum(report.wall_times.values()):.1f} s{peak}")
    return ReportTable(("", ""), rows, footer=(total,), title="Wall time")


def _pairs(values: Mapping[str, Any]) -> ReportTable:
    rows = tuple(words(name, str(value)) for name, value in values.items())
    return ReportTable(("", ""), rows, figures=(0, 0))


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the results, in what conditions they differ, and the checks, as tables."""
    console = console or Console()
    console.print(Text(report.title, style="bold"))
    for notice in report.gathered.notices:
        console.print(Text(f"note: {notice}", style="yellow"))
    if report.effective:
        console.print(_table(report.effective))
    for section in report.sections:
        console.print(Text(f"\n{section.title}", style="bold"))
        for remark in section.remarks:
            console.print(Text(remark, style="yellow"))
        for table in section.tables:
            console.print(_table(table))
        if paper := section.paper:
            console.print(_table(paper) if paper.rows else Text(f"{paper.title}. {paper.note}"))
        if differing := _differing(section.conditions):
            console.print(_table(differing))
    if report.wall_times:
        console.print(_table(_times(report)))
    if report.checks:
        console.print(_checks_table(report))


def _differing(conditions: ReportTable) -> ReportTable | None:
    """Conditions in which columns differ, except for those in which checkpoints always do."""
    rows = tuple(
        row for row in conditions.rows if len(row) > 2 and row[0].text not in _OF_THE_CHECKPOINT
    )
    title = "Conditions that differ; the page has all"
    return dataclasses.replace(conditions, rows=rows, title=title) if rows else None


def _table(table: ReportTable) -> Table:
    title, caption = table.title or None, table.note or None
    shown = Table(title=title, caption=caption, show_header=any(table.header), min_width=60)
    for place, name in enumerate(table.header):
        shown.add_column(name, justify="right" if table.holds_figures(place) else "left")
    for rows in filter(None, (table.rows, table.footer)):
        for row in rows:
            shown.add_row(*_cells(row))
        shown.add_section()
    return shown


def _cells(row: tuple[Cell, ...]) -> Iterator[Text]:
    """The best of a line bold, and with a star for where there is no bold."""
    for cell in row:
        colour = "red" if cell.is_beyond else "green" if cell.is_best else ""
        style = f"bold {colour}" if cell.is_best else colour
        yield Text(f"{cell.text} *" if cell.is_best else cell.text, style=style)


def _checks_table(report: Report) -> Table:
    table = Table("", "check", "measured", "asked for", title="Checks")
    for check in report.checks:
        verdict = Text("pass", style="green") if check.passed else Text("FAIL", style="bold red")
        table.add_row(verdict, check.name, check.figure, check.bound)
    return table


def write_report(report: Report, folder: str | Path) -> Path:
    """Write the report folder, whole or not at all, and return its page; ``report.json`` in it has
    every result.

    Raises:
        InputError: the folder holds something.
    """
    with output.output_folder(folder, "evaluate report") as made:
        for name, picture in _file_names(report).items():
            (made.path / name).write_bytes(picture.png)
        (made.path / "index.html").write_text(report_page(report), encoding="utf-8")
        write_json(made.path / "report.json", "report", _values(report))
    return Path(folder) / "index.html"


def _file_names(report: Report) -> dict[str, Picture]:
    """Pictures by names that files can have: scores of the harness are called as a task likes."""
    found: dict[str, Picture] = {}
    for picture in (one for section in report.sections for one in section.pictures):
        name = re.sub(r"[^\w.()@+-]+", "-", picture.name, flags=re.ASCII)[:_LONGEST_NAME]
        others = (f"{name}-{number}.png" for number in itertools.count(2))
        choices = itertools.chain([f"{name}.png"], others)
        found[next(one for one in choices if one not in found)] = picture
    return found


def _values(report: Report) -> dict[str, Any]:
    plain = (
        "title", "command", "summary", "machine", "date", "peak_memory_gib", "settings",
        "wall_times", "versions", "checks",
    )  # fmt: skip
    return {
        **plain_values({name: getattr(report, name) for name in plain}),
        "passed": report.passed,
        "notices": list(report.gathered.notices),
        "results": [
            {
                "label": one.label,
                "benchmark": one.result.kind.name,
                "file": str(one.source),
                "result": plain_values(one.result),
            }
            for one in report.gathered.measurements
        ],
        "effective_length": {
            "threshold": report.threshold,
            **{one.title: dict(one.effective) for one in report.sections if one.effective},
        },
        "paper": {
            section.title: [[cell.text for cell in row] for row in section.paper.rows]
            for section in report.sections
            if section.paper
        },
    }


def evaluate_report(config: ReportConfig) -> Report:
    """Print the tables and write the page.

    Raises:
        InputError: no results, a damaged file, or an output folder that holds something.
    """
    if config.output:
        output.check_output(config.output)
    typed = ["ultralong", "evaluate", "report", *config.runs]
    fields.check_ranges(config)
    for field in dataclasses.fields(config)[1:]:
        if (value := getattr(config, field.name)) != field.default:
            typed += [f"--{field.name}", f"{value}"]
    options: dict[str, Any] = {"title": config.title, "threshold": config.threshold}
    report = gather_report(config.runs, command=shlex.join(typed), **options)
    print_report(report)
    if config.output:
        Console(soft_wrap=True).print(f"\nreport: {write_report(report, config.output)}")
    return report
