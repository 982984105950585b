"""Error of bfloat16 attention against float64, by CP size, with documents and without."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from megatron_ultralong.attention import reference, ring_attention
from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.attention.kernels.base import Gradients, Inputs, Kernel, Result, Saved
from megatron_ultralong.attention.kernels.math import MATH, MathKernel
from megatron_ultralong.sequence.assignment import zigzag
from megatron_ultralong.sequence.transport import LocalRing

from .lone_rank import LoneRank
from .measurement import header, inputs, measured, row, timed

SIZES = (1, 2, 4, 8, 16)
PARTS = ("bfloat16", "as the kernel has them")


def accuracy(arguments: argparse.Namespace) -> None:
    """Root-mean-square error of out, dq, dk and dv over that at CP 1, by how parts are added."""
    device = torch.device(arguments.device)
    kernel = _kernel(arguments, device)
    length = min(4096, arguments.local_tokens)
    tensors = inputs(length, arguments, torch.bfloat16, device)
    print(f"\nError of bfloat16 against float64, {length} tokens, {kernel.name}: largest, relative")
    print(
        "mean square (over that at CP 1). Least: of out, if parts are rounded and nothing else is"
    )
    print("worse than at CP 1.")
    header("documents", "parts", "CP", "out", "dq", "dk", "dv", "least of out")
    eighth = length // 8
    for edges in (None, [0, 1, 2 * eighth + 44, 4 * eighth, length]):
        cu_seqlens = None if edges is None else torch.tensor(edges)
        dense = partial(reference.attention, cu_seqlens=cu_seqlens)
        exact = _results(tensors, torch.float64, dense)
        for parts in PARTS:
            with _added(kernel, parts):
                _errors(tensors, exact, cu_seqlens, parts)
    if device.type == "cuda":
        _speed(arguments, device, kernel)


def _errors(
    tensors: list[Tensor], exact: list[Tensor], cu_seqlens: Tensor | None, parts: str
) -> None:
    """Rows of the table: by CP size."""
    one: list[float] = []
    roundings: list[float] = []
    for cp_size in SIZES:
        pairs = list(zip(_ring(tensors, cp_size, cu_seqlens), exact, strict=True))
        errors = [_relative(a, b) for a, b in pairs]
        one = one or errors
        cells = [
            f"{(a - b).abs().max():.1e}, {error:.2e} ({error / before:.3f})"
            for (a, b), error, before in zip(pairs, errors, one, strict=True)
        ]
        roundings.append(_relative(_rounded_parts(tensors, cp_size, cu_seqlens), exact[0]))
        least = (one[0] ** 2 - roundings[0] ** 2 + roundings[-1] ** 2) ** 0.5
        documents = "none" if cu_seqlens is None else len(cu_seqlens) - 1
        row(documents, parts, cp_size, *cells, f"{least:.2e} ({least / one[0]:.3f})")


def _relative(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


class _RoundedOutput(MathKernel):
    """Exact, except that the output of each block is rounded to bfloat16."""

    name = "rounded"

    def forward(self, inputs: Inputs) -> Result:
        """See :class:`Kernel`."""
        out, lse = MATH.forward(inputs)
        return out.bfloat16().to(out.dtype), lse


def _rounded_parts(tensors: list[Tensor], cp_size: int, cu_seqlens: Tensor | None) -> Tensor:
    """The sum of exact parts, rounded as each of them is."""
    with mock.patch.object(block_attention, "_resolve", return_value=(_RoundedOutput(), "")):
        how = zigzag(cp_size)
        wide = [x.double() for x in tensors[:3]]
        shards = [torch.cat([how.shard(x, r, 0) for r in range(cp_size)]) for x in wide]
        out = ring_attention(*shards, group=LocalRing(cp_size), cu_seqlens=cu_seqlens)
        return how.unshard(out.bfloat16().double().chunk(cp_size), 0)


def _kernel(arguments: argparse.Namespace, device: torch.device) -> Kernel:
    """The first of those asked for that serves here."""
    found = [
        each
        for each in block_attention.candidates(device)
        if each.name in (*arguments.kernels, "cpu")
        and each.refusal(torch.bfloat16, arguments.head_dim, device) is None
    ]
    return (
        found[0] if found else block_attention.resolve(torch.bfloat16, arguments.head_dim, device)
    )


@contextmanager
def _added(kernel: Kernel, parts: str) -> Iterator[None]:
    """Use the kernel; ``bfloat16``: round its parts before they are added."""
    forward, backward = type(kernel).forward, type(kernel).backward

    def rounded(self: Kernel, inputs: Inputs) -> Result:
        return forward(self, Inputs(*inputs))

    def gradients(self: Kernel, inputs: Inputs, saved: Saved) -> Gradients:
        return backward(self, Inputs(*inputs), saved)

    with mock.patch.object(block_attention, "_resolve", return_value=(kernel, "")):
        if parts != PARTS[0]:
            yield
            return
        changes = {"forward": rounded, "backward": gradients, "can_widen": False}
        with mock.patch.multiple(type(kernel), **changes):
            yield


def _ring(tensors: list[Tensor], cp_size: int, cu_seqlens: Tensor | None) -> list[Tensor]:
    """Results of all ranks in this process, whole sequence, float64."""
    how = zigzag(cp_size)
    shards = [torch.cat([how.shard(x, r, 0) for r in range(cp_size)]) for x in tensors]
    group = LocalRing(cp_size)
    ring = partial(ring_attention, group=group, cu_seqlens=cu_seqlens)
    found = _results(shards, torch.bfloat16, ring)
    return [how.unshard(x.chunk(cp_size), 0).double() for x in found]


def _results(
    tensors: list[Tensor], dtype: torch.dtype, call: Callable[..., Tensor]
) -> list[Tensor]:
    """out, dq, dk, dv."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in tensors[:3])
    out = call(q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3].to(dtype))]


def _speed(arguments: argparse.Namespace, device: torch.device, kernel: Kernel) -> None:
    """Time and memory of rank 0, in turns."""
    print(f"\nRank 0 of {arguments.cp} alone, {kernel.name}: the median of turns, in which the two")
    print("ways follow each other; GiB at the peak beyond inputs and results.")
    columns = [f"{name}, {unit}" for name in ("forward", "backward") for unit in ("s", "GiB")]
    header("local tokens", "documents", "parts", *columns, "time over that of bfloat16: forward", "backward")  # fmt: skip  # noqa: E501
    for local in sorted({min(x, arguments.local_tokens) for x in (8_192, 65_536, 262_144)}):
        length = local * arguments.cp
        for edges in (None, [0, local // 3, length // 2 + 77, length]):
            found = _turns(
                arguments, kernel, inputs(local, arguments, torch.bfloat16, device), edges
            )
            for parts, its in found.items():
                ratios = [f"{its[i] / found[PARTS[0]][i]:.3f}" for i in (0, 2)]
                documents = "none" if edges is None else len(edges) - 1
                row(local, documents, parts, *(f"{x:.4f}" for x in its), *ratios)


def _turns(
    arguments: argparse.Namespace, kernel: Kernel, tensors: list[Tensor], edges: list[int] | None
) -> dict[str, list[float]]:
    """Seconds and GiB of forward, then of backward, for each way to add parts."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    options: dict[str, Any] = {
        "group": LoneRank(arguments.cp, 0),
        "cu_seqlens": None if edges is None else torch.tensor(edges),
    }
    ring = partial(ring_attention, q, k, v, **options)
    turns: dict[str, list[list[float]]] = {parts: [] for parts in PARTS}
    memory: dict[str, list[float]] = {}
    for turn in range(3 if len(q) > 100_000 else 10):
        for parts in PARTS:
            with _added(kernel, parts):
                # Memory is given back before it is measured, and takes time to get again: the
                # first turn is not one of those that count. It compiles, too.
                call = partial(measured, q.device) if turn == 0 else timed
                out, forward, *forward_memory = call(ring)
                backward = partial(torch.autograd.grad, out, (q, k, v), tensors[3])
                _, seconds, *backward_memory = call(backward)
                if turn == 0:
                    memory[parts] = [*forward_memory, *backward_memory]
                else:
                    turns[parts].append([forward, seconds])
                del out, backward
    found = {}
    for parts, its in turns.items():
        (forward, seconds), (first, second) = map(median, zip(*its, strict=True)), memory[parts]
        found[parts] = [forward, first, seconds, second]
    return found
