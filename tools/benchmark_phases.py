"""What the clocks of phases cost an interleaved pipeline, on real ranks.

    torchrun --nproc-per-node 2 tools/benchmark_phases.py

A pipeline sends while it computes, as long as nobody waits for a kernel in between. The program's
own step runs with three clocks in turns, so that all see the same machine: none, events on the
stream (what a run has), and one that waits for the device at the border of every phase, which is
what a clock of the host has to do.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import time
from typing import Any

import megatron.core
import torch
from rank_benchmark.job import RankJob

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.run import MemoryConfig
from megatron_ultralong.config.training import DataConfig, PretrainConfig
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.model.shape import MODELS
from megatron_ultralong.program.ranks import is_main_rank
from megatron_ultralong.training.telling.phases import Clock, CudaClock


class NoClock:
    """Marks nothing."""

    def mark(self) -> float:
        """See :class:`Clock`."""
        return 0.0

    def wait(self, mark: float) -> None:
        """See :class:`Clock`."""

    def seconds(self, first: float, second: float) -> float:
        """See :class:`Clock`."""
        return 0.0


class WaitingClock(Clock):
    """The host's time, once the device has done all that it was given."""

    def mark(self) -> float:
        """See :class:`Clock`."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class SwitchedClock:
    """One of several clocks at a time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def mark(self) -> Any:
        """See :class:`Clock`."""
        return self.clock.mark()

    def wait(self, mark: Any) -> None:
        """See :class:`Clock`."""
        self.clock.wait(mark)

    def seconds(self, first: Any, second: Any) -> float:
        """See :class:`Clock`."""
        return self.clock.seconds(first, second)


def main() -> None:
    """Measure and print."""
    arguments = _parser().parse_args()
    stages = int(os.environ["WORLD_SIZE"])
    config = PretrainConfig(
        train_iters=1,
        precision="bf16" if torch.cuda.is_available() else "fp32",
        global_batch_size=arguments.num_microbatches,
        parallel=ParallelConfig(
            pipeline_model_parallel_size=stages,
            num_virtual_stages_per_pipeline_rank=arguments.num_virtual_stages,
        ),
        memory=MemoryConfig(recompute_granularity="none"),
        data=DataConfig(seq_length=arguments.seq_length),
    )
    model = dataclasses.replace(MODELS[arguments.model], num_layers=arguments.num_layers)
    clocks: dict[str, Clock] = {
        "none": NoClock(),
        "events": CudaClock() if torch.cuda.is_available() else Clock(),
        "waiting": WaitingClock(),
    }
    with parallel_groups(config.parallel, 0) as groups:
        clock = SwitchedClock(clocks["none"])
        job = RankJob(config, model, groups, clock=clock)
        seconds: dict[str, list[float]] = {name: [] for name in clocks}
        for turn in range(arguments.num_turns + 1):
            for name, clock.clock in clocks.items():
                job.timers.restart()  # no mark of another clock is left
                measured = job.iteration(arguments.seq_length).seconds
                if turn:  # the first one compiles, allocates and connects
                    seconds[name].append(measured)
        if is_main_rank():
            _print(seconds, arguments, stages)


def _print(seconds: dict[str, list[float]], arguments: argparse.Namespace, stages: int) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(
        f"{stages} x {device}, torch {torch.__version__}, Megatron-Core "
        f"{megatron.core.__version__}: {arguments.num_layers} layers of {arguments.model}, "
        f"{arguments.num_microbatches} rows of {arguments.seq_length:,} tokens, "
        f"{stages} stages x {arguments.num_virtual_stages} chunks, {arguments.num_turns} turns"
    )
    for name, values in seconds.items():
        pairs = zip(values, seconds["none"], strict=True)
        ratios = sorted(value / plain for value, plain in pairs)
        print(
            f"{name:8} median {1e3 * statistics.median(values):8.1f} ms, of none "
            f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama3.1-8b", choices=sorted(MODELS))
    parser.add_argument("--num-layers", type=int, default=8)
    parser.add_argument("--seq-length", type=int, default=4096)
    parser.add_argument("--num-microbatches", type=int, default=16)
    parser.add_argument("--num-virtual-stages", type=int, default=2)
    parser.add_argument("--num-turns", type=int, default=7)
    return parser


if __name__ == "__main__":
    main()
