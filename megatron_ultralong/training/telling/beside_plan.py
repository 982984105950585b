"""The run beside its plan: one slow GPU or link holds up all ranks, and shows nowhere else."""

from __future__ import annotations

import dataclasses
import statistics

from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.plan.estimate import Estimate
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.job import GIB, Job
from megatron_ultralong.program.ranks import local_world_size
from megatron_ultralong.training.telling.log import IterationRecord

MEASURED = 3
"""Iterations of the median, behind the first of a start, which compiles and allocates."""
SHORTEST = 1.0
"""Seconds of a planned step; what shorter ones take besides is not planned."""
LONGER = 1.15
"""Over what the plan was off for whole jobs, 8 % (docs/planning.md)."""
ADVICE = (
    "  all ranks wait for the slowest: `nvidia-smi --query-gpu=index,clocks.sm,"
    "clocks_event_reasons.active --format=csv -l 5` on every host shows a GPU that is slowed "
    "(0x20, 0x40: heat; 0x80: its supply); between hosts, the network may be slower than planned"
)


class BesidePlan:
    """Compares some iterations of a start with the plan of the same run, and tells it once."""

    def __init__(
        self, config: TrainingConfig, model: ModelConfig, num_ranks: int, hardware: Hardware | None
    ) -> None:
        """``hardware``: what the ranks run on; None: not known, and nothing is compared."""
        self._job = Job(model, config, num_ranks, mean_area=0.0)
        self._hardware = hardware
        masked = config.data.document_mask != "none" and config.parallel.ring_ranks > 1
        if masked:  # how unevenly ranks share rows is not known before they come
            self._hardware = None
        self._seconds: list[float] = []
        self._areas: list[float] = []

    def note(self, record: IterationRecord, area: float) -> str | None:
        """What to tell after an iteration: two figures and their plan, and where to look.

        Args:
            record: of the iteration.
            area: pairs of query and key over its rows.
        """
        if self._hardware is None or len(self._seconds) > MEASURED:
            return None
        saving_ms = record.phases_ms.get("checkpoint", 0.0)  # of the iteration before; not planned
        self._seconds.append((record.elapsed_ms - saving_ms) / 1000.0)
        self._areas.append(area)
        if len(self._seconds) <= MEASURED:
            return None
        seconds = statistics.median(self._seconds[1:])
        rows = self._job.config.global_batch_size
        job = dataclasses.replace(self._job, mean_area=statistics.mean(self._areas[1:]) / rows)
        try:
            estimate = Estimate(
                job, dataclasses.replace(self._hardware, gpus_per_node=local_world_size())
            )
            planned, peak = estimate.time.total, estimate.stages[0].peak.total / GIB
        except Exception as error:  # a figure for people, never the end of a run
            return f"beside the plan: a step takes {seconds:.1f} s; no plan of it: {error}"
        if planned < SHORTEST:
            return None
        share = seconds / planned - 1.0
        text = (
            f"beside the plan: a step takes {seconds:.1f} s, planned {planned:.1f} ({share:+.0%}); "
            f"{record.peak_memory_gib:.1f} GiB at the peak of this rank, planned {peak:.1f}"
        )
        return f"{text}\n{ADVICE}" if seconds > LONGER * planned else text
