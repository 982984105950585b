"""Measurement: random inputs, time, memory, and a row of a Markdown table."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.attention import ring_attention

FORWARD, BACKWARD = 4, 10  # floating-point operations for each pair, head and unit of head size


def row(*cells: object) -> None:
    """One row of a Markdown table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def header(*cells: str) -> None:
    """Heads of the columns, and the line below."""
    print()
    row(*cells)
    row(*["---"] * len(cells))


def inputs(
    length: int, arguments: argparse.Namespace, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """q, k, v and dout, [length, 1, heads, d]."""
    generator = torch.Generator(device).manual_seed(0)
    heads = (arguments.heads, arguments.kv_heads, arguments.kv_heads, arguments.heads)
    shapes = [(length, 1, n, arguments.head_dim) for n in heads]
    return [torch.randn(s, generator=generator, dtype=dtype, device=device) for s in shapes]


def work(area: int, arguments: argparse.Namespace) -> float:
    """Area of a mask times heads times head size, in units of 1e12."""
    return float(area) * arguments.heads * arguments.head_dim / 1e12


def times(tensors: list[Tensor], **options: Any) -> tuple[float, float]:
    """Seconds of one forward and one backward pass."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    out, forward = timed(lambda: ring_attention(q, k, v, **options))
    _, backward = timed(lambda: torch.autograd.grad(out, (q, k, v), tensors[3]))
    return forward, backward


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Result and seconds, the GPU's work included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def measured(device: torch.device, call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, seconds, and GiB at the peak beyond what was there and the result."""
    if device.type != "cuda":
        return *timed(call), float("nan")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result, seconds = timed(call)
    tensors = result if isinstance(result, tuple) else (result,)
    peak = torch.cuda.max_memory_allocated(device) - before
    return result, seconds, (peak - sum(x.nbytes for x in tensors)) / 2**30
