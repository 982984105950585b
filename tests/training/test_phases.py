"""Phases of an iteration are timed without anybody waiting inside the schedule."""

from __future__ import annotations

import collections
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.training import loop
from megatron_ultralong.training.telling.log import IterationRecord
from megatron_ultralong.training.telling.phases import PHASES, CudaClock, PhaseTimers
from megatron_ultralong.training.verbs import pretrain
from tests.ranks import run_on_ranks
from tests.training.conftest import MakeConfig

STEPS = 3
Counts = collections.Counter[str]


COUNTS: Counts = collections.Counter()
"""Of this rank."""


class CountingEvent:
    """Stands where a GPU's event would, on a machine without one; waits are counted."""

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = time.perf_counter()
        COUNTS["recorded"] += 1

    def synchronize(self) -> None:
        COUNTS["waited for"] += 1

    def elapsed_time(self, other: CountingEvent) -> float:
        return 1000.0 * (other.time - self.time)


def count_synchronize() -> None:
    """``torch.cuda.synchronize``, by the package that calls it."""
    caller = sys._getframe(1).f_globals["__name__"].split(".")[0]
    COUNTS[f"synchronized by {caller}"] += 1


def train_counting(config: Any) -> tuple[list[IterationRecord], Counts]:
    """Run on every rank: train as on a GPU's clock."""
    from megatron_ultralong.mcore import cpu

    cpu.do_nothing = count_synchronize  # type: ignore[assignment]
    torch.cuda.Event = CountingEvent  # type: ignore[assignment,misc]
    loop.PhaseTimers = lambda: PhaseTimers(CudaClock())  # type: ignore[assignment,misc]
    return pretrain(config), COUNTS


def test_nobody_waits_inside_an_interleaved_schedule(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = dataclasses.replace(
        make_config(None, train_iters=STEPS, model="deep"),
        global_batch_size=4,
        parallel=ParallelConfig(
            pipeline_model_parallel_size=2, num_virtual_stages_per_pipeline_rank=2
        ),
    )
    for records, counts in run_on_ranks(2, train_counting, config):
        # Forward, backward and messages of 4 micro-batches in 2 chunks: far more borders than
        # steps, and one wait a step, when it is over; one before the first.
        assert counts["recorded"] > STEPS * 4 * 2 * 2
        assert counts["waited for"] == STEPS + 1
        assert not [who for who in counts if who.startswith("synchronized")]
        assert len(records) == STEPS
        for record in records:
            phases = record.phases_ms
            assert set(phases) == set(PHASES)
            # Read at the same places one after the other: another process may come between.
            assert sum(phases.values()) == pytest.approx(record.elapsed_ms, rel=0.1, abs=20)
            assert min(phases[name] for name in ("data", "forward", "backward")) > 0
            assert phases["communication"] > 0


class CountedClock:
    """A clock that continues by one at every mark."""

    def __init__(self) -> None:
        self.now = 0
        self.waits: list[int] = []

    def mark(self) -> int:
        self.now += 1
        return self.now

    def wait(self, mark: int) -> None:
        self.waits.append(mark)

    def seconds(self, first: int, second: int) -> float:
        return float(second - first)


def test_a_phase_stops_the_one_around_it() -> None:
    clock = CountedClock()
    timers = PhaseTimers(clock)  # 1
    # Other until 2, optimizer until 3, communication until 4, optimizer until 5.
    with timers.phase("optimizer"), timers.phase("communication"):
        assert timers.current == "communication"
    forward = timers("forward-compute", log_level=2)
    forward.start()  # other until 6
    assert not clock.waits
    taken = timers.take()  # forward until 7
    assert clock.waits == [7]
    expected = {"other": 2, "optimizer": 2, "communication": 1, "forward": 1}
    assert taken == {name: 1000.0 * expected.get(name, 0) for name in PHASES}
    forward.stop()
    assert sum(timers.take().values()) == 2000.0
