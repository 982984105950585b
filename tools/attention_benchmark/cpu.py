"""Two gloo ranks of one thread against one process of two threads, on the same two cores."""

from __future__ import annotations

import argparse
import tempfile
from statistics import median

import torch
import torch.distributed as dist

from megatron_ultralong.context_parallel import zigzag

from .measurement import header, inputs, row, times
from .recipe_lengths import recipe_lengths


def cpu(arguments: argparse.Namespace) -> None:
    """Two gloo ranks of one thread against one process of two threads, in turns.

    Each repetition gives one ratio; the median of them is little disturbed by other programs.
    """
    names = ["tokens", "mask", "one process, s", "two ranks, s", "speed of two ranks / one process"]
    header(*names, "all ratios")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, args=(f"{folder}/store", arguments), nprocs=2)


def _rank(rank: int, store: str, arguments: argparse.Namespace) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    for length in arguments.lengths:
        for edges in (None, recipe_lengths(length, 0)):
            alone, together = _seconds(rank, length, edges, arguments)
            if rank == 0:
                ratios = [one / two for one, two in zip(alone, together, strict=True)]
                row(
                    length,
                    "none" if edges is None else f"{len(edges) - 1} documents",
                    f"{median(alone):.2f}",
                    f"{median(together):.2f}",
                    f"{median(ratios):.2f}",
                    ", ".join(f"{x:.2f}" for x in ratios),
                )
    dist.destroy_process_group()


def _seconds(
    rank: int, length: int, edges: list[int] | None, arguments: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """Forward and backward of one process (rank 0 alone) and of two ranks, by repetition."""
    cu_seqlens = None if edges is None else torch.tensor(edges)
    whole = inputs(length, arguments, torch.float32, torch.device("cpu"))
    shards = [zigzag(2).shard(x, rank, 0) for x in whole]
    alone, together = [], []
    for _ in range(arguments.repeat):
        if rank == 0:
            torch.set_num_threads(2)
            alone.append(sum(times(whole, cu_seqlens=cu_seqlens)))
        torch.set_num_threads(1)
        dist.barrier()
        together.append(sum(times(shards, cu_seqlens=cu_seqlens, group=dist.group.WORLD)))
        dist.barrier()
    return alone, together
