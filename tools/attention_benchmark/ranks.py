"""Ring attention over NCCL, one GPU a rank, against the same work with nothing in flight."""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.attention import ring_attention
from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.attention.ring.plan import make_plan
from megatron_ultralong.sequence.assignment import Assignment, balanced, zigzag
from megatron_ultralong.sequence.transport import Transport

from .lone_rank import LoneRank
from .measurement import BACKWARD, FORWARD, header, inputs, row, timed, work
from .recipe_lengths import recipe_lengths


def ranks(arguments: argparse.Namespace) -> None:
    """Real ranks over NCCL, under torchrun, against one rank with nothing in flight, in turns."""
    rank = int(os.environ["RANK"])
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    device = torch.device("cuda", torch.cuda.current_device())
    dist.init_process_group("nccl", device_id=device)
    size = dist.get_world_size()
    if rank == 0:
        print(f"{size} ranks of {arguments.local_tokens:,} tokens, the slowest rank's seconds.")
        header(*_COLUMNS)
    edges = recipe_lengths(arguments.local_tokens * size, 0)
    name = block_attention.resolve(torch.bfloat16, arguments.head_dim, device).name
    for documents, assignment, backend in (
        (None, zigzag(size), "p2p"),
        (None, zigzag(size), "all_gather"),
        (edges, zigzag(size), "p2p"),
        (edges, balanced(edges, size), "p2p"),
        (edges, balanced(edges, size), "all_gather"),
    ):
        _compare(arguments, device, name, documents, assignment, backend)
    dist.destroy_process_group()


_COLUMNS = [
    "mask", "chunks a rank", "back-end", "kernel", "forward, s", "backward, s",
    "nothing in flight: forward, s", "backward, s", "speed against that, forward", "backward",
    "TFLOP/s forward", "TFLOP/s backward",
]  # fmt: skip


def _compare(
    arguments: argparse.Namespace,
    device: torch.device,
    kernel: str,
    edges: list[int] | None,
    assignment: Assignment,
    backend: str,
) -> None:
    """Medians of ``--repeat`` turns of both, the slowest rank's."""
    rank, size = dist.get_rank(), dist.get_world_size()
    world = dist.group.WORLD
    assert world is not None
    tensors = inputs(arguments.local_tokens, arguments, torch.bfloat16, device)
    plan = make_plan(
        assignment, arguments.local_tokens * size, None if edges is None else tuple(edges)
    )
    options = {
        "cu_seqlens": None if edges is None else torch.tensor(edges),
        "assignment": assignment,
        "backend": backend,
        "kernel": kernel,
    }
    groups: list[Transport | dist.ProcessGroup] = [world, LoneRank(size, rank)]
    for group in groups:
        _seconds(tensors, options | {"group": group})  # compiles
    turns = [
        [_seconds(tensors, options | {"group": group}) for group in groups]
        for _ in range(arguments.repeat)
    ]
    real, alone = torch.tensor(turns, dtype=torch.float64).median(dim=0).values.to(device)
    for slowest in (real, alone):
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    units = work(max(plan.area(number) for number in range(size)), arguments)
    if rank == 0:
        row(
            "none" if edges is None else f"{len(edges) - 1} documents",
            assignment.chunks_per_rank,
            backend,
            kernel,
            *(f"{x:.3f}" for x in (*real.tolist(), *alone.tolist())),
            *(f"{x:.2f}" for x in (alone / real).tolist()),
            *(
                f"{a * units / b:.0f}"
                for a, b in zip((FORWARD, BACKWARD), real.tolist(), strict=True)
            ),
        )


def _seconds(tensors: list[Tensor], options: dict[str, Any]) -> tuple[float, float]:
    """Forward and backward, started together on all ranks."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    dist.barrier()
    out, forward = timed(lambda: ring_attention(q, k, v, **options))
    dist.barrier()
    _, backward = timed(lambda: torch.autograd.grad(out, (q, k, v), tensors[3]))
    return forward, backward
