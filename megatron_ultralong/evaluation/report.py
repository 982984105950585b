"""The report of an extension: one folder with a page, its pictures and every figure as JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron_ultralong.evaluation.loss_result import LossResult
from megatron_ultralong.evaluation.output_folder import new_output_folder
from megatron_ultralong.evaluation.passkey_result import PasskeyResult
from megatron_ultralong.evaluation.pictures import loss_picture, passkey_picture
from megatron_ultralong.evaluation.report_page import report_page
from megatron_ultralong.evaluation.result_file import write_json
from megatron_ultralong.evaluation.tables import loss_table, passkey_table
from megatron_ultralong.evaluation.verdicts import (
    Bounds,
    Check,
    cost_checks,
    loss_checks,
    passkey_checks,
)

_KIND = "report"


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that stands in a report; verdicts follow from it."""

    title: str
    summary: str
    """One or two sentences on what was done."""
    command: str
    """What a reader types to get the same."""
    settings: dict[str, Any]
    """The recipe: name of a setting and its value."""
    loss: LossResult
    """Of two checkpoints: the base, then the extended model."""
    passkey_before: PasskeyResult
    passkey_after: PasskeyResult
    wall_times: dict[str, float]
    """Seconds of every step, in the order they ran."""
    peak_memory_gib: float
    """Of all processes together."""
    machine: str
    """Processors and memory the run had."""
    versions: dict[str, str]
    date: str
    extra_checks: tuple[Check, ...] = ()
    """Checks made elsewhere, such as the weights of import and export being equal."""
    bounds: Bounds = dataclasses.field(default_factory=Bounds)

    @property
    def checks(self) -> tuple[Check, ...]:
        """Every figure against its bound."""
        return (
            *loss_checks(self.loss, self.bounds),
            *passkey_checks(self.passkey_before, self.passkey_after, self.bounds),
            *self.extra_checks,
            *cost_checks(sum(self.wall_times.values()), self.peak_memory_gib, self.bounds),
        )

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


def write_report(report: Report, folder: str | Path) -> Path:
    """Write the report folder, whole or not at all, and return its page.

    The folder holds ``index.html`` (which needs no other file), ``loss.png``, ``passkey.png`` and
    ``report.json``.

    Raises:
        InputError: the folder holds something.
    """
    with new_output_folder(folder) as aside:
        loss_picture(report.loss, aside / "loss.png")
        passkey_picture(
            [report.passkey_before, report.passkey_after],
            aside / "passkey.png",
            report.passkey_before.max_positions,
        )
        pictures = {name: (aside / f"{name}.png").read_bytes() for name in ("loss", "passkey")}
        (aside / "index.html").write_text(report_page(report, pictures), encoding="utf-8")
        checks = [dataclasses.asdict(check) for check in report.checks]
        values = {"passed": report.passed, "checks": checks, **dataclasses.asdict(report)}
        write_json(aside / "report.json", _KIND, values)
    return Path(folder) / "index.html"


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the results and the checks as tables."""
    console = console or Console()
    console.print(loss_table(report.loss))
    console.print(passkey_table(report.passkey_before))
    console.print(passkey_table(report.passkey_after))
    console.print(_times_table(report))
    console.print(_checks_table(report))


def _checks_table(report: Report) -> Table:
    table = Table(title="Checks")
    for column in ("", "check", "measured", "asked for"):
        table.add_column(column)
    for check in report.checks:
        verdict = Text("pass", style="green") if check.passed else Text("FAIL", style="bold red")
        table.add_row(verdict, check.name, check.figure, check.bound)
    return table


def _times_table(report: Report) -> Table:
    table = Table(title=f"Wall times, peak memory {report.peak_memory_gib:.2f} GiB")
    table.add_column("step")
    table.add_column("seconds", justify="right")
    for step, seconds in report.wall_times.items():
        table.add_row(step, f"{seconds:.1f}")
    table.add_section()
    table.add_row("all", f"{sum(report.wall_times.values()):.1f}")
    return table
