"""``ultralong doctor``: look at everything, say what to mend."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Iterator

import torch

from megatron_ultralong.doctor.communication import communication_findings
from megatron_ultralong.doctor.finding import Finding
from megatron_ultralong.doctor.machine import machine_findings
from megatron_ultralong.doctor.software import software_findings
from megatron_ultralong.errors import InputError

SICK = 1
"""Exit status where a run cannot work here."""


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
    """Whether this machine, image and job can run the other verbs.

    Exit status 0 where they can, 1 with a problem. Under torchrun the ranks of the job are tried
    together; elsewhere two are started here.
    """

    communication: bool = True
    """Start ranks, and measure an all-reduce and a step of ring attention."""
    megabytes: int = 64
    """Size of the all-reduce, in MiB."""


def diagnose(config: DoctorConfig) -> int:
    """Print every finding as soon as it is there; returns the exit status.

    Raises:
        InputError: nothing to measure.
    """
    if config.megabytes < 1:
        raise InputError(f"megabytes must be at least 1, not {config.megabytes}")
    is_main = int(os.environ.get("RANK", "0")) == 0
    levels: Counter[str] = Counter()
    for finding in _findings(config):
        levels[finding.level] += 1
        if is_main or finding.level == "problem":
            sys.stdout.write(finding.line() + "\n")
            sys.stdout.flush()
    if is_main:
        counts = ", ".join(f"{levels[level]} {level}s" for level in ("problem", "warning", "note"))
        sys.stdout.write(f"{counts}\n")
    return SICK if levels["problem"] else 0


def _findings(config: DoctorConfig) -> Iterator[Finding]:
    yield from software_findings()
    yield from machine_findings(has_gpu=torch.cuda.is_available())
    if config.communication:
        yield from communication_findings(config.megabytes)
