"""The real step of every rank beside the emulated one, in turns, on all devices at the same time.

Cards of one host differ in clock and power, and real ranks wait for the slowest. So every rank
has a second process on its own device, which emulates this rank's place in the job. While one of
the two computes, the other waits and leaves the device alone.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean, median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranks import is_main_rank
from rank_benchmark import lone_group
from rank_benchmark.clocks import Clocks, watched
from rank_benchmark.job import Measurement, RankJob

SECONDS_TO_END = 60.0
KINDS = ("real", "emulated")


class Turns(NamedTuple):
    """Of one rank and one kind: medians over its turns."""

    seconds: float
    phases: dict[str, float]
    loss: float
    peak_gib: float
    clocks: Clocks


class Emulated:
    """A process that emulates this rank on this rank's device."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def iteration(self, seq_length: int) -> Measurement:
        """See :class:`RankJob`.

        Raises:
            InputError: the process has failed; with what it said.
        """
        self._pipe.send(seq_length)
        try:
            found = self._pipe.recv()
        except EOFError:
            found = "it has ended"
        if not isinstance(found, Measurement):
            raise InputError(f"rank {dist.get_rank()}, emulated: {found}")
        return found


@contextmanager
def emulated(config: PretrainConfig, model: ModelConfig) -> Iterator[Emulated]:
    """Start the process; on leaving it ends."""
    context = multiprocessing.get_context("spawn")
    own, other = context.Pipe()
    place = (dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    options = (other, config, model, place, torch.get_num_threads())
    process = context.Process(target=_emulate, args=options, daemon=True)
    process.start()
    other.close()
    try:
        yield Emulated(own)
    finally:
        own.close()
        process.join(SECONDS_TO_END)
        if process.is_alive():
            process.kill()


def _emulate(
    pipe: Any, config: PretrainConfig, model: ModelConfig, place: tuple[int, int, int], threads: int
) -> None:
    """Iterations of the lengths that come, until the pipe is closed."""
    torch.set_num_threads(threads)
    lone_group.start(*place)
    try:
        with parallel_groups(config.parallel, seed=1) as groups:
            job = RankJob(config, model, groups)
            while True:
                pipe.send(_iteration(job, pipe.recv()))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _iteration(job: RankJob | Emulated, seq_length: int) -> Measurement:
    """One, after which nothing of it is held in the device's memory but the job itself."""
    found = job.iteration(seq_length)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def print_beside_emulation(
    arguments: argparse.Namespace,
    config: PretrainConfig,
    model: ModelConfig,
    groups: ProcessGroupCollection,
) -> None:
    """A table of all ranks: medians of ``--turns`` steps of both kinds, and the slowest of each."""
    length = config.data.seq_length
    with emulated(config, model) as other:
        jobs: dict[str, RankJob | Emulated] = {"real": RankJob(config, model, groups)}
        jobs["emulated"] = other
        for each in jobs.values():
            for warm_up in arguments.warm_up:  # compiles kernels
                dist.barrier()
                _iteration(each, warm_up or length)
        found = {kind: [] for kind in KINDS}
        for _ in range(arguments.turns):
            for kind, job in jobs.items():
                dist.barrier()  # all start together, and none while another kind still computes
                _synchronize()
                found[kind].append(watched(lambda its=job: _iteration(its, length)))
        dist.barrier()
    by_rank: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(by_rank, [_medians(found[kind]) for kind in KINDS])
    if is_main_rank():
        _print(by_rank)


def _medians(its: list[tuple[Measurement, Clocks]]) -> Turns:
    steps = [step for step, _ in its]
    names = list(dict.fromkeys(name for step in steps for name in step.phases))
    return Turns(
        median(step.seconds for step in steps),
        {name: median(step.phases.get(name, 0.0) for step in steps) for name in names},
        steps[-1].loss,
        max(step.peak_allocated_gib for step in steps),
        Clocks(*map(mean, zip(*(clocks for _, clocks in its), strict=True))),
    )


def _print(by_rank: list[list[Turns]]) -> None:
    """The table, and each phase of the slowest ranks."""
    columns = ["rank", "real step, s", "emulated step, s", "speed of real over emulated",
               "real: clock, power", "emulated: clock, power", "real: loss, GiB",
               "emulated: loss, GiB"]  # fmt: skip
    _row(*columns)
    _row(*["---"] * len(columns))
    for rank, both in enumerate(by_rank):
        real, alone = both
        _row(
            rank, f"{real.seconds:.3f}", f"{alone.seconds:.3f}",
            f"{alone.seconds / real.seconds:.3f}", *(its.clocks for its in both),
            *(f"{its.loss:.4f}, {its.peak_gib:.2f}" for its in both),
        )  # fmt: skip
    real, alone = (max(its, key=lambda one: one.seconds) for its in zip(*by_rank, strict=True))
    _row(
        "slowest", f"{real.seconds:.3f}", f"{alone.seconds:.3f}",
        f"{alone.seconds / real.seconds:.3f}", *["-"] * 4,
    )  # fmt: skip
    print("\nSeconds of the slowest rank by phase:\n")
    _row("phase", *KINDS)
    _row(*["---"] * 3)
    for name in dict.fromkeys([*real.phases, *alone.phases]):
        _row(name, *(f"{its.phases.get(name, 0.0):.3f}" for its in (real, alone)))


def _row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
