"""Which kernels the time of the device goes to."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

PRODUCTS = ("gemm", "nvjet", "cutlass_80", "cublas", "xmma")
ATTENTION = ("flash", "cudnn", "fmha")
LONGEST = 14


def kernel_times(run: Callable[[], object]) -> list[tuple[float, int, str]]:
    """Of each kernel that ``run()`` starts its milliseconds, number and name, longest first."""
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    rows = [
        (row.self_device_time_total / 1e3, row.count, row.key)
        for row in profile.key_averages()
        # NCCL's calls have a time on the device too, beside their kernels.
        if row.self_device_time_total > 0
        and row.device_type.name != "CPU"
        and not row.is_user_annotation
    ]
    return sorted(rows, reverse=True)


def print_kernels(title: str, run: Callable[[], object]) -> None:
    """Device time of ``run()`` by kind of kernel, and the longest kernels that are no products."""
    rows = kernel_times(run)
    # What flash-attn-4 compiles has cutlass in its name too.
    attention = [row for row in rows if any(word in row[2].lower() for word in ATTENTION)]
    others = [row for row in rows if row not in attention]
    products = [row for row in others if any(word in row[2].lower() for word in PRODUCTS)]
    kinds = {"attention": attention, "products": products}
    said = ", ".join(f"{sum(ms for ms, *_ in its):.0f} of {kind}" for kind, its in kinds.items())
    print(f"\n{title}: {sum(ms for ms, *_ in rows):.0f} ms of kernels, {said}")
    for ms, count, name in sorted({*rows} - {*products}, reverse=True)[:LONGEST]:
        print(f"  {ms:9.1f} ms  {count:5d}  {name[:110]}")
    sys.stdout.flush()
