"""``evaluate report``: results of several checkpoints on one page."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Annotated

from tyro.conf import Positional, arg

from megatron_ultralong.evaluation.output_folder import check_output_folder
from megatron_ultralong.evaluation.report.report import Report, gather_report, write_report
from megatron_ultralong.evaluation.report.terminal import print_report
from megatron_ultralong.terminal import Console


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Gather results of several checkpoints into one page: pictures, tables with checkpoints side
    by side and the better figure marked, the paper's figures beside those that they can be compared
    with, and the conditions of every figure.

    `ultralong evaluate report before/ after/ --output report` takes what
    `ultralong evaluate loss|passkey|needle|ruler|... --output` wrote into those folders, however
    deep. Checkpoints are known by the names they had (--load NAME=FOLDER). Results of one
    checkpoint and benchmark under different conditions are all shown, and what differs is said.
    Evaluations that are not finished (OUTPUT.partial) are left out, and named.
    """

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN ...]")] = ()
    """Folders to search for results, or result files."""
    output: str = ""
    """New folder for index.html, which needs no other file, the pictures and report.json; empty:
    print only."""
    title: str = ""
    """Headline of the page; empty: from the checkpoints' names."""


def evaluate_report(config: ReportConfig) -> Report:
    """Print the tables and write the page.

    Raises:
        InputError: no results, a damaged file, or an output folder that holds something.
    """
    if config.output:
        check_output_folder(config.output)
    words = ["ultralong", "evaluate", "report", *config.runs]
    for flag in ("output", "title"):
        if value := getattr(config, flag):
            words += [f"--{flag}", value]
    report = gather_report(config.runs, title=config.title, command=shlex.join(words))
    print_report(report)
    if config.output:
        Console(soft_wrap=True).print(f"\nreport: {write_report(report, config.output)}")
    return report
