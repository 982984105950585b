"""Balance of the work among ranks, from the plans alone: no attention is computed."""

from __future__ import annotations

import argparse

import numpy as np

from megatron_ultralong.attention.ring.plan import Plan, make_plan
from megatron_ultralong.sequence.assignment import balanced, zigzag
from megatron_ultralong.sequence.chunks import ring_time
from megatron_ultralong.sequence.documents import causal_area

from .measurement import row
from .recipe_lengths import recipe_lengths


def balance(arguments: argparse.Namespace) -> None:
    """Work of the busiest rank, of the ring's steps, and of the whole, from the plans alone."""
    print(
        "(`ring`: its time as modelled, over that of equal ranks that never wait; `barriers`: the"
    )
    print(
        "sum over hops of the busiest rank's work, over the mean: what it would be if all waited at"
    )
    print("every hop; `keys sent`: part of what a ring without documents sends)\n")
    header = ["CP", "seed", "documents", "assignment", "chunks a rank", "executed / mask"]
    row(*header, "busiest / mean", "ring / mean", "barriers / mean", "keys sent")
    row(*["---"] * 10)
    for cp_size in (4, 8, 16):
        for seed in range(arguments.seeds):
            edges = recipe_lengths(arguments.local_tokens * cp_size, seed)
            for name, assignment in (
                ("zigzag", zigzag(cp_size)),
                ("balanced", balanced(edges, cp_size)),
            ):
                plan = make_plan(assignment, edges[-1], tuple(edges))
                row(cp_size, seed, len(edges) - 1, name, *_shares(plan))


def _shares(plan: Plan) -> list[str]:
    """The last six columns of a row of the balance table."""
    size = plan.size
    areas = np.array([
        [
            sum(rectangle.area for rectangle in step) if hop else causal_area(own)
            for hop, step in enumerate(steps)
        ]
        for steps, own in zip(plan.rectangles, plan.local_cu_seqlens, strict=True)
    ])  # fmt: skip
    mean = areas.sum() / size
    sent = sum(high - low for hops in plan.needed for low, high in hops)
    return [
        str(plan.assignment.chunks_per_rank),
        f"{areas.sum() / causal_area(plan.cu_seqlens):.3f}",
        f"{areas.sum(1).max() / mean:.3f}",
        f"{ring_time(areas):.2f}",
        f"{areas.max(0).sum() / mean:.2f}",
        f"{sent / (plan.seq_length * (size - 1)):.2f}",
    ]
