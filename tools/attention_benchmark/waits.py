"""Whether ranks of a ring wait as :mod:`ring_time` says, with the ring's own order of transfers."""

from __future__ import annotations

import argparse
import time

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.attention.ring.ring import run
from megatron_ultralong.sequence.assignment import balanced, zigzag
from megatron_ultralong.sequence.chunks import Areas, hop_areas, phases_end
from megatron_ultralong.sequence.transport import ProcessGroupRing, Transfer

from .measurement import header, row
from .recipe_lengths import recipe_lengths

PASS_SECONDS = 1.5  # that a rank computes in the mean: far above what gloo takes


class SleepingPass:
    """A rank that sends a little to the next one in each phase, and sleeps where it would compute.

    Args:
        seconds: of its phases.
        rank: its number.
        size: number of ranks.
    """

    def __init__(self, seconds: list[float], rank: int, size: int) -> None:
        self.num_phases = len(seconds)
        self._seconds, self._peers = seconds, ((rank + 1) % size, (rank - 1) % size)
        self._sent, self._received = torch.zeros(8), torch.zeros(8)

    def transfers(self, phase: int) -> list[Transfer]:
        """To the next rank, from the one before."""
        to, source = self._peers
        return [Transfer("send", to, self._sent), Transfer("receive", source, self._received)]

    def compute(self, phase: int) -> None:
        """Sleep."""
        time.sleep(self._seconds[phase])

    def finish(self, phase: int) -> None:
        """Nothing."""


def waits(arguments: argparse.Namespace) -> None:
    """Ranks over gloo that sleep instead of computing, beside the time that is modelled."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        header("seed", "assignment", "chunks a rank", "modelled / mean", "measured / mean")
    for seed in range(arguments.seeds):
        edges = recipe_lengths(arguments.local_tokens * size, seed)
        for name, assignment in (("zigzag", zigzag(size)), ("balanced", balanced(edges, size))):
            areas = hop_areas(assignment.chunks, edges)
            areas *= PASS_SECONDS / areas.sum(axis=1).mean()
            slowest = _slowest(areas, rank, size)
            if rank == 0:
                cells = (phases_end(areas) / PASS_SECONDS, float(slowest) / PASS_SECONDS)
                row(seed, name, assignment.chunks_per_rank, *(f"{cell:.3f}" for cell in cells))
    dist.destroy_process_group()


def _slowest(areas_RH: Areas, rank: int, size: int) -> Tensor:
    """Seconds until the last rank is done."""
    world = dist.group.WORLD
    assert world is not None
    each = SleepingPass(areas_RH[rank].tolist(), rank, size)
    dist.barrier()
    start = time.perf_counter()
    run([each], ProcessGroupRing(world))
    seconds = torch.tensor(time.perf_counter() - start)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return seconds
