"""What stands in a report."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.report.gathering import Gathered, gather
from megatron_ultralong.evaluation.report.section import Section
from megatron_ultralong.evaluation.report.sections import sections
from megatron_ultralong.evaluation.results.conditions import now, versions
from megatron_ultralong.evaluation.verdicts import Check


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that stands in a report. Results alone are needed."""

    title: str
    command: str
    """What a reader types to get the same."""
    gathered: Gathered
    summary: str = ""
    """One or two sentences on what was done."""
    checks: tuple[Check, ...] = ()
    """Figures against what was asked of them."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The recipe: name of a setting and its value."""
    wall_times: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Seconds of every step, in the order they ran."""
    peak_memory_gib: float | None = None
    """Of all processes together."""
    machine: str = ""
    """Processors and memory the run had."""
    versions: Mapping[str, str] = dataclasses.field(default_factory=versions)
    """Of what made the page; those of the results stand with them."""
    date: str = dataclasses.field(default_factory=now)

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @functools.cached_property
    def sections(self) -> tuple[Section, ...]:
        """Pictures and tables, drawn once."""
        return sections(self.gathered.measurements)


def gather_report(runs: Sequence[str | Path], *, title: str = "", **others: Any) -> Report:
    """A report of the results of ``runs``; ``others`` are further fields of :class:`Report`.

    Raises:
        InputError: as :func:`~megatron_ultralong.evaluation.report.gathering.gather`.
    """
    gathered = gather(runs)
    names = list(dict.fromkeys(one.checkpoint for one in gathered.measurements))
    shown = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    if len(names) > 4:
        shown = f"{len(names)} checkpoints"
    return Report(title=title or f"Evaluation of {shown}", gathered=gathered, **others)
