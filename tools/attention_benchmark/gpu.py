"""A CP group's work on one GPU against the best single kernel: speed, memory, error."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.attention import ring_attention
from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.attention.kernels.base import Inputs, Saved
from megatron_ultralong.attention.ring.plan import make_plan
from megatron_ultralong.sequence.assignment import Assignment, balanced, zigzag
from megatron_ultralong.sequence.documents import causal_area
from megatron_ultralong.sequence.transport import LocalRing, Transport

from .accuracy import accuracy
from .lone_rank import LoneRank
from .measurement import BACKWARD, FORWARD, header, inputs, measured, row, timed, work
from .recipe_lengths import recipe_lengths

Speed = tuple[float, float]  # TFLOP/s of forward and backward


def gpu(arguments: argparse.Namespace) -> None:
    """Every rank's work of a CP group on one device, against the best single kernel."""
    device = torch.device(arguments.device)
    best = _single_kernels(arguments, device)
    parts = {
        "rank": _ranks,
        "documents": _documents,
        "none": _no_documents,
        "accuracy": lambda *_: accuracy(arguments),
    }
    for part in arguments.parts:
        parts[part](arguments, device, best)


def _ranks(arguments: argparse.Namespace, device: torch.device, best: dict[str, Speed]) -> None:
    """One rank of the group."""
    print("\nOne rank alone (rank 0; the keys and sums that it would receive are random). Memory:")
    print("GiB at the peak beyond inputs and outputs, the kernel's own workspace included.")
    header(*_COLUMNS, "GiB forward", "GiB backward")
    first, *_ = best
    edges, shares = _recipe(arguments)
    how = zigzag(arguments.cp)
    for name in best:
        _one_rank(arguments, device, best, None, how, "p2p", name)
    _one_rank(arguments, device, best, None, how, "p2p", first, deterministic=True)
    _one_rank(arguments, device, best, edges, shares, "p2p", first)
    _one_rank(arguments, device, best, edges, shares, "all_gather", first)


def _documents(arguments: argparse.Namespace, device: torch.device, best: dict[str, Speed]) -> None:
    """All ranks in one process, with documents."""
    print("\nAll ranks of the group in one process, documents of the recipe's lengths.")
    header(*_COLUMNS)
    first, *_ = best
    edges, shares = _recipe(arguments)
    _whole_group(arguments, device, best, edges, zigzag(arguments.cp), first)
    for name in best:
        _whole_group(arguments, device, best, edges, shares, name)


def _no_documents(
    arguments: argparse.Namespace, device: torch.device, best: dict[str, Speed]
) -> None:
    """All ranks in one process, without documents."""
    print("\nAll ranks of the group in one process.")
    header(*_COLUMNS)
    first, *_ = best
    _whole_group(arguments, device, best, None, zigzag(arguments.cp), first)


def _recipe(arguments: argparse.Namespace) -> tuple[list[int], Assignment]:
    """Documents of the whole row, and their balanced assignment."""
    edges = recipe_lengths(arguments.local_tokens * arguments.cp, 0)
    return edges, balanced(edges, arguments.cp)


_COLUMNS = [
    "mask", "chunks a rank", "back-end", "kernel", "forward, s", "backward, s",
    "TFLOP/s forward", "TFLOP/s backward", "share of the best single kernel, forward", "backward",
]  # fmt: skip


def _single_kernels(arguments: argparse.Namespace, device: torch.device) -> dict[str, Speed]:
    """Speeds of each kernel on one rank's tokens, the best of three blocks."""
    n = arguments.local_tokens
    header("single kernel", "block", "TFLOP/s forward", "TFLOP/s backward", "GiB backward")
    best: dict[str, Speed] = {}
    q, k, v, dout = inputs(n, arguments, torch.bfloat16, device)
    # A rank's step of the ring is one of the two rectangles; all three have the same area.
    blocks = [("causal", n, n), ("late queries", n // 2, n), ("early keys", n, n // 2)]
    for kernel in block_attention.candidates(device):
        if kernel.name not in arguments.kernels:
            continue
        refusal = kernel.refusal(torch.bfloat16, arguments.head_dim, device)
        if refusal:
            print(f"({kernel.name}: {refusal})")
            continue
        for name, rows, keys in blocks:
            tensors = (q[:rows], k[:keys], v[:keys], dout[:rows])
            *speed, memory = _kernel_speed(arguments, kernel, tensors, name == "causal")
            cells = [f"{x:.0f}" for x in speed]
            row(kernel.name, f"{name} {rows} x {keys}", *cells, f"{memory:.2f}")
            before = best.get(kernel.name, (0.0, 0.0))
            best[kernel.name] = (max(before[0], speed[0]), max(before[1], speed[1]))
    return best


def _kernel_speed(
    arguments: argparse.Namespace,
    kernel: block_attention.Kernel,
    block: tuple[Tensor, Tensor, Tensor, Tensor],
    causal: bool,
) -> tuple[float, float, float]:
    """TFLOP/s of forward and backward, and GiB of backward beyond inputs and results.

    Each is called again and again for ``--seconds``: a GPU that draws all its power slows down
    after some tenths of a second, and a rank's work takes seconds.
    """
    q, k, v, dout = block
    units = work(causal_area((0, len(q))) if causal else len(q) * len(k), arguments)
    scale = arguments.head_dim**-0.5
    inputs = Inputs(q, k, v, (0, len(q)) if causal else None, scale)
    saved = Saved(dout, *block_attention.forward(kernel, inputs))
    block_attention.backward(kernel, inputs, saved)
    _, once, _ = measured(q.device, lambda: block_attention.forward(kernel, inputs))
    times = max(1, int(arguments.seconds / once))
    _, forward = timed(lambda: _repeat(times, lambda: block_attention.forward(kernel, inputs)))
    forward_speed = FORWARD * units * times / forward
    _, once, memory = measured(q.device, lambda: block_attention.backward(kernel, inputs, saved))
    times = max(1, int(arguments.seconds / once))
    _, backward = timed(
        lambda: _repeat(times, lambda: block_attention.backward(kernel, inputs, saved))
    )
    return forward_speed, BACKWARD * units * times / backward, memory


def _repeat(times: int, call: Callable[[], Any]) -> None:
    for _ in range(times):
        call()


def _one_rank(
    arguments: argparse.Namespace,
    device: torch.device,
    best: dict[str, Speed],
    edges: list[int] | None,
    assignment: Assignment,
    backend: str,
    kernel: str,
    deterministic: bool = False,
) -> None:
    """Time and memory of rank 0."""
    length = arguments.local_tokens * arguments.cp
    plan = make_plan(assignment, length, None if edges is None else tuple(edges))
    options = _options(LoneRank(arguments.cp, 0), edges, assignment, backend, kernel)
    tensors = inputs(arguments.local_tokens, arguments, torch.bfloat16, device)
    if edges is not None:
        _warm_up(tensors, options)
    memory = _row(
        device,
        best,
        tensors,
        work(plan.area(0), arguments),
        options | {"deterministic": deterministic},
    )
    print(f" {memory[0]:.2f} | {memory[1]:.2f} |", flush=True)


def _whole_group(
    arguments: argparse.Namespace,
    device: torch.device,
    best: dict[str, Speed],
    edges: list[int] | None,
    assignment: Assignment,
    kernel: str,
) -> None:
    """Time of all ranks."""
    length = arguments.local_tokens * arguments.cp
    units = work(causal_area(edges or (0, length)), arguments)
    options = _options(LocalRing(arguments.cp), edges, assignment, "p2p", kernel)
    tensors = inputs(length, arguments, torch.bfloat16, device)
    if edges is not None:
        _warm_up(tensors, options)
    _row(device, best, tensors, units, options)
    print(flush=True)


def _warm_up(tensors: list[Tensor], options: dict[str, Any]) -> None:
    """Compile kernels and build plans for new shapes: done once for all layers, not counted."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    torch.autograd.grad(ring_attention(q, k, v, **options), (q, k, v), tensors[3])


def _options(
    group: Transport, edges: list[int] | None, assignment: Assignment, backend: str, kernel: str
) -> dict[str, Any]:
    """Arguments of ring_attention."""
    return {
        "group": group,
        "cu_seqlens": None if edges is None else torch.tensor(edges),
        "assignment": assignment,
        "backend": backend,
        "kernel": kernel,
    }


def _row(
    device: torch.device,
    best: dict[str, Speed],
    tensors: list[Tensor],
    units: float,
    options: dict[str, Any],
) -> tuple[float, float]:
    """Run, print the cells of :data:`_COLUMNS`, return GiB of forward and backward."""
    q, k, v = (x.requires_grad_() for x in tensors[:3])
    out, forward, forward_memory = measured(device, lambda: ring_attention(q, k, v, **options))
    _, backward, backward_memory = measured(
        device, lambda: torch.autograd.grad(out, (q, k, v), tensors[3])
    )
    top = [max(speed[i] for speed in best.values()) for i in (0, 1)]
    speeds = (FORWARD * units / forward, BACKWARD * units / backward)
    edges = options["cu_seqlens"]
    cells = [
        "none" if edges is None else f"{len(edges) - 1} documents",
        str(options["assignment"].chunks_per_rank),
        options["backend"],
        options["kernel"] + (", deterministic" if options.get("deterministic") else ""),
        f"{forward:.2f}",
        f"{backward:.2f}",
        *(f"{x:.0f}" for x in speeds),
        *(f"{x / y:.2f}" for x, y in zip(speeds, top, strict=True)),
    ]
    print("| " + " | ".join(cells) + " |", end="")
    return forward_memory, backward_memory
