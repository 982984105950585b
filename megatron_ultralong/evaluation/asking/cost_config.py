"""Options of every evaluation: what it may cost."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from megatron_ultralong.program.ranges import Range, check_ranges


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """What an evaluation may cost."""

    max_cost: Annotated[float, Range(0, 1e12)] = 0.0
    """GPU-hours (on a CPU: hours of a rank) that the estimate may not exceed; 0: no limit."""
    estimated_tflops: Annotated[float, Range(0, 1_000_000)] = 0.0
    """TFLOP/s of one GPU that the estimate assumes; 0: 40 % of the device's dense bf16 peak, and
    0.03 on a CPU."""

    def check(self) -> None:
        """Raise InputError where a number is out of its range."""
        check_ranges(self)
