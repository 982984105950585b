"""Options of ``evaluate report``."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from tyro.conf import Positional, arg


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
