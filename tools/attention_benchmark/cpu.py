"""Two gloo ranks of one thread against one process of two threads, on the same two cores."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from statistics import median

import torch
import torch.distributed as dist

from megatron_ultralong.sequence.assignment import zigzag

from .measurement import header, inputs, row, times
from .recipe_lengths import recipe_lengths

MAX_OTHERS = 0.05  # of the processors' time: a repetition disturbed by more does not count


def cpu(arguments: argparse.Namespace) -> None:
    """Two gloo ranks of one thread against one process of two threads, in turns.

    Each repetition gives one ratio, with the share of the processors that other programs took. The
    median counts of those that were left alone: two threads that share their cores with another
    program wait for each other, and two processes do not.
    """
    names = ["tokens", "mask", "one process, s", "two ranks, s", "speed of two ranks / one process"]
    header(*names, "all ratios (time of other programs)")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, args=(f"{folder}/store", arguments), nprocs=2)


def _rank(rank: int, store: str, arguments: argparse.Namespace) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    for length in arguments.lengths:
        for edges in (None, recipe_lengths(length, 0)):
            repetitions = _repetitions(rank, length, edges, arguments)
            if rank == 0:
                mask = "none" if edges is None else f"{len(edges) - 1} documents"
                _print(length, mask, repetitions)
    dist.barrier()  # no rank leaves while another still works
    dist.destroy_process_group()


Repetition = tuple[float, float, float]  # seconds of one process, of two ranks; others' share


def _print(length: int, mask: str, repetitions: list[Repetition]) -> None:
    """One row."""
    ratios = ", ".join(f"{one / two:.2f} ({others:.0%})" for one, two, others in repetitions)
    quiet = [its for its in repetitions if its[2] <= MAX_OTHERS]
    if not quiet:
        row(length, mask, "-", "-", "none was undisturbed", ratios)
        return
    one, two = (f"{median(its[i] for its in quiet):.2f}" for i in (0, 1))
    row(length, mask, one, two, f"{median(x / y for x, y, _ in quiet):.2f}", ratios)


def _repetitions(
    rank: int, length: int, edges: list[int] | None, arguments: argparse.Namespace
) -> list[Repetition]:
    """Forward and backward of one process (rank 0 alone), then of two ranks."""
    cu_seqlens = None if edges is None else torch.tensor(edges)
    whole = inputs(length, arguments, torch.float32, torch.device("cpu"))
    shards = [zigzag(2).shard(x, rank, 0) for x in whole]
    times([x[:512] for x in whole])  # what the first call of a process pays
    found = []
    for _ in range(arguments.repeat):
        dist.barrier()
        start, busy, own = time.perf_counter(), _busy(), time.process_time()
        alone = 0.0
        if rank == 0:
            torch.set_num_threads(2)
            alone = sum(times(whole, cu_seqlens=cu_seqlens))
        torch.set_num_threads(1)
        dist.barrier()
        together = sum(times(shards, cu_seqlens=cu_seqlens, group=dist.group.WORLD))
        dist.barrier()
        actual = torch.tensor([time.process_time() - own])
        elapsed, busy = time.perf_counter() - start, _busy() - busy
        dist.all_reduce(actual)
        others = max(0.0, busy - actual.item()) / (elapsed * (os.cpu_count() or 1))
        found.append((alone, together, others))
    return found


def _busy() -> float:
    """Seconds that all processors have worked since the start of the machine (Linux)."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, interrupts, soft, *_ = map(int, file.readline().split()[1:])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
