"""A report on disk: one folder with a page, its pictures and every figure as JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.report.page import report_page
from megatron_ultralong.evaluation.report.report import Report
from megatron_ultralong.evaluation.results.file import write_json
from megatron_ultralong.evaluation.results.result import plain_values
from megatron_ultralong.program.new_output import new_output_folder

_KIND = "report"


def write_report(report: Report, folder: str | Path) -> Path:
    """Write the report folder, whole or not at all, and return its page.

    The folder holds ``index.html`` (which needs no other file), the pictures as PNG, and
    ``report.json`` with every result.

    Raises:
        InputError: the folder holds something.
    """
    with new_output_folder(folder) as aside:
        for section in report.sections:
            for picture in section.pictures:
                (aside / f"{picture.name}.png").write_bytes(picture.png)
        (aside / "index.html").write_text(report_page(report), encoding="utf-8")
        write_json(aside / "report.json", _KIND, _values(report))
    return Path(folder) / "index.html"


def _values(report: Report) -> dict[str, Any]:
    plain = ("title", "command", "summary", "machine", "date", "peak_memory_gib")
    values = {name: getattr(report, name) for name in plain}
    for name in ("settings", "wall_times", "versions"):
        values[name] = dict(getattr(report, name))
    return {
        **values,
        "passed": report.passed,
        "checks": [dataclasses.asdict(check) for check in report.checks],
        "notices": list(report.gathered.notices),
        "results": [
            {
                "label": one.label,
                "benchmark": one.kind,
                "file": str(one.source),
                "result": plain_values(one.result),
            }
            for one in report.gathered.measurements
        ],
        "paper": {
            section.title: [[cell.text for cell in row] for row in section.paper.rows]
            for section in report.sections
            if section.paper
        },
    }
