"""``evaluate report``: results of several checkpoints on one page."""

from __future__ import annotations

import shlex

from megatron_ultralong.evaluation.report.config import ReportConfig
from megatron_ultralong.evaluation.report.report import Report, gather_report
from megatron_ultralong.evaluation.report.terminal import print_report
from megatron_ultralong.evaluation.report.writing import write_report
from megatron_ultralong.program.new_output import check_output_folder
from megatron_ultralong.program.terminal import Console


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
