"""Speed, balance, error and memory of ring attention, as ratios measured in one run.

    python tools/benchmark_attention.py balance   # areas alone: seconds, no attention is computed
    python tools/benchmark_attention.py cpu       # two gloo ranks against one process
    python tools/benchmark_attention.py gpu       # a whole group's work on one GPU, minutes

Each prints a Markdown table under its conditions; benchmarks/attention.md holds the results.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.attention import kernels, reference, ring_attention
from megatron_ultralong.attention.plan import Plan, make_plan
from megatron_ultralong.attention.rectangle import causal_area
from megatron_ultralong.context_parallel import Assignment, LocalRing, balanced, zigzag
from megatron_ultralong.errors import InputError

FORWARD, BACKWARD = 4, 10  # floating-point operations for each pair, head and unit of head size


def recipe_lengths(seq_length: int, seed: int) -> list[int]:
    """Document boundaries of one row after the recipe's sampling by length.

    Web pages (median 700 tokens) and one book or repository in twelve (median 60,000), log-normal;
    documents under 4,096 tokens are kept with probability 0.1 (arXiv 2402.10171).
    """
    generator = np.random.default_rng(seed)
    edges = [0]
    while edges[-1] < seq_length:
        median_length, spread = (60_000, 1.0) if generator.random() < 1 / 12 else (700, 1.3)
        length = int(median_length * np.exp(spread * generator.normal()))
        if length >= 4096 or (length > 0 and generator.random() < 0.1):
            edges.append(min(seq_length, edges[-1] + length))
    return edges


# --- balance -------------------------------------------------------------------------------------


def balance(arguments: argparse.Namespace) -> None:
    """Work of the busiest rank, of the ring's steps, and of the whole, from the plans alone."""
    print("(`steps`: the sum over hops of the busiest rank's work, over the mean: what a ring that")
    print("waits at every hop takes; `keys sent`: part of what a ring without documents sends)\n")
    header = ["CP", "seed", "documents", "assignment", "chunks a rank", "executed / mask"]
    _row(*header, "busiest / mean", "steps / mean", "keys sent")
    _row(*["---"] * 9)
    for cp_size in (4, 8, 16):
        for seed in range(arguments.seeds):
            edges = recipe_lengths(arguments.local_tokens * cp_size, seed)
            for name, assignment in (
                ("zigzag", zigzag(cp_size)),
                ("balanced", balanced(edges, cp_size)),
            ):
                plan = make_plan(assignment, edges[-1], tuple(edges))
                _row(cp_size, seed, len(edges) - 1, name, *_shares(plan))


def _shares(plan: Plan) -> list[str]:
    """The last five columns of a row of the balance table."""
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
        f"{areas.max(0).sum() / mean:.2f}",
        f"{sent / (plan.seq_length * (size - 1)):.2f}",
    ]


def _row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


# --- cpu -----------------------------------------------------------------------------------------


def cpu(arguments: argparse.Namespace) -> None:
    """Two gloo ranks of one thread against one process of two threads, on the same cores."""
    _row("tokens", "mask", "one process, s", "two ranks, s", "speed of two ranks / one process")
    _row(*["---"] * 5)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_cpu_rank, args=(f"{folder}/store", arguments), nprocs=2)


def _cpu_rank(rank: int, store: str, arguments: argparse.Namespace) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    for length in arguments.lengths:
        for edges in (None, recipe_lengths(length, 0)):
            cu_seqlens = None if edges is None else torch.tensor(edges)
            whole = _inputs(length, arguments, torch.float32, torch.device("cpu"))
            shards = [zigzag(2).shard(x, rank, 0) for x in whole]
            alone, together = [], []
            for _ in range(arguments.repeat):  # in turns, since a shared machine drifts
                if rank == 0:
                    torch.set_num_threads(2)
                    alone.append(sum(_times(whole, cu_seqlens=cu_seqlens)))
                torch.set_num_threads(1)
                dist.barrier()
                group = dist.group.WORLD
                together.append(sum(_times(shards, cu_seqlens=cu_seqlens, group=group)))
                dist.barrier()
            if rank == 0:
                one, two = min(alone), min(together)  # what the machine can do undisturbed
                mask = "none" if edges is None else f"{len(edges) - 1} documents"
                _row(length, mask, f"{one:.2f}", f"{two:.2f}", f"{one / two:.2f}")
    dist.destroy_process_group()


def _inputs(
    length: int, arguments: argparse.Namespace, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """q, k, v and dout, [length, 1, heads, d]."""
    generator = torch.Generator(device).manual_seed(0)
    heads = (arguments.heads, arguments.kv_heads, arguments.kv_heads, arguments.heads)
    shapes = [(length, 1, n, arguments.head_dim) for n in heads]
    return [torch.randn(s, generator=generator, dtype=dtype, device=device) for s in shapes]


def _times(tensors: list[Tensor], **options: Any) -> tuple[float, float]:
    """Seconds of one forward and one backward pass."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    out, forward = _timed(lambda: ring_attention(q, k, v, **options))
    _, backward = _timed(lambda: torch.autograd.grad(out, (q, k, v), tensors[3]))
    return forward, backward


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Result and seconds, the GPU's work included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


# --- gpu -----------------------------------------------------------------------------------------


def gpu(arguments: argparse.Namespace) -> None:
    """Every rank's work of a CP group on one device, against the best single kernel."""
    device = torch.device(arguments.device)
    dtype = torch.bfloat16
    best = _single_kernels(arguments, dtype, device)
    length = arguments.local_tokens * arguments.cp
    edges = recipe_lengths(length, 0)
    print("\nAll ranks of the group in one process, their sums side by side in memory.\n")
    _row("mask", "assignment", "back-end", "kernel", "TFLOP/s forward", "TFLOP/s backward",
         "share of the best, forward", "share of the best, backward",
         "extra GiB a rank, forward", "extra GiB a rank, backward")  # fmt: skip
    _row(*["---"] * 10)
    cases: list[tuple[list[int] | None, Assignment, str]] = [
        (None, zigzag(arguments.cp), "p2p"),
        (edges, zigzag(arguments.cp), "p2p"),
        (edges, balanced(edges, arguments.cp), "p2p"),
    ]
    for cu_seqlens, assignment, backend in cases:
        _whole_group(arguments, dtype, device, best, cu_seqlens, assignment, backend)
    _errors(arguments, device)


def _single_kernels(
    arguments: argparse.Namespace, dtype: torch.dtype, device: torch.device
) -> tuple[float, float]:
    """TFLOP/s of each kernel on one rank's tokens; the best forward and backward."""
    n = arguments.local_tokens
    _row("single kernel", "block", "TFLOP/s forward", "TFLOP/s backward")
    _row(*["---"] * 4)
    best = (0.0, 0.0)
    q, k, v, dout = _inputs(n, arguments, dtype, device)
    # A rank's step of the ring is one of the two rectangles; all three have the same area.
    blocks = [("causal", n, n), ("late queries", n // 2, n), ("early keys", n, n // 2)]
    for kernel in kernels.candidates(device):
        refusal = kernel.refusal(dtype, arguments.head_dim, device)
        if refusal or (kernel.name == "math" and n > 4096):
            print(f"({kernel.name}: {refusal or 'it holds all scores'})")
            continue
        for name, rows, keys in blocks:
            speed = _kernel_speed(
                arguments, kernel, (q[:rows], k[:keys], v[:keys], dout[:rows]), name == "causal"
            )
            _row(kernel.name, f"{name} {rows} x {keys}", *(f"{x:.1f}" for x in speed))
            best = (max(best[0], speed[0]), max(best[1], speed[1]))
    return best


def _kernel_speed(
    arguments: argparse.Namespace,
    kernel: kernels.Kernel,
    block: tuple[Tensor, Tensor, Tensor, Tensor],
    causal: bool,
) -> tuple[float, float]:
    """TFLOP/s of forward and backward, the median of a few, after one to warm up."""
    q, k, v, dout = block
    area = causal_area((0, len(q))) if causal else len(q) * len(k)
    work = area * arguments.heads * arguments.head_dim / 1e12
    forward, backward = [], []
    scale = arguments.head_dim**-0.5
    for _ in range(arguments.repeat + 1):
        (out, lse), seconds = _timed(lambda: kernels.forward(kernel, q, k, v, causal, scale))
        forward.append(seconds)
        saved = (dout, q, k, v, out, lse)
        _, seconds = _timed(lambda its=saved: kernels.backward(kernel, *its, causal, scale))
        backward.append(seconds)
    return FORWARD * work / median(forward[1:]), BACKWARD * work / median(backward[1:])


def _whole_group(
    arguments: argparse.Namespace,
    dtype: torch.dtype,
    device: torch.device,
    best: tuple[float, float],
    edges: list[int] | None,
    assignment: Assignment,
    backend: str,
) -> None:
    """One row of the table: speed and memory of all ranks."""
    cp_size, length = arguments.cp, arguments.local_tokens * arguments.cp
    area = causal_area(edges or (0, length))
    work = area * arguments.heads * arguments.head_dim / 1e12
    q, k, v, dout = _inputs(length, arguments, dtype, device)
    for x in (q, k, v):
        x.requires_grad_()
    options: dict[str, Any] = {
        "group": LocalRing(cp_size),
        "cu_seqlens": None if edges is None else torch.tensor(edges),
        "assignment": assignment,
        "backend": backend,
    }
    out, forward, forward_memory = _measured(device, lambda: ring_attention(q, k, v, **options))
    _, backward, backward_memory = _measured(
        device, lambda: torch.autograd.grad(out, (q, k, v), dout)
    )
    speeds = (FORWARD * work / forward, BACKWARD * work / backward)
    _row(
        "none" if edges is None else f"{len(edges) - 1} documents",
        f"{assignment.chunks_per_rank} chunks a rank",
        backend,
        kernels.resolve(dtype, arguments.head_dim, device).name,
        *(f"{x:.1f}" for x in speeds),
        *(f"{x / max(y, 1e-9):.2f}" for x, y in zip(speeds, best, strict=True)),
        *(f"{x / cp_size / 2**30:.2f}" for x in (forward_memory, backward_memory)),
    )


def _measured(device: torch.device, call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, seconds, and bytes at the peak beyond what was there and the result."""
    if device.type != "cuda":
        return *_timed(call), float("nan")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result, seconds = _timed(call)
    tensors = result if isinstance(result, tuple) else (result,)
    peak = torch.cuda.max_memory_allocated(device) - before
    return result, seconds, peak - sum(x.nbytes for x in tensors)


def _errors(arguments: argparse.Namespace, device: torch.device) -> None:
    """Largest and root-mean-square error of bfloat16 against float64, by CP size."""
    length = min(4096, arguments.local_tokens)
    tensors = _inputs(length, arguments, torch.bfloat16, device)
    exact = _results(tensors, torch.float64, lambda q, k, v: reference.attention(q, k, v))
    print(f"\nError of bfloat16 against float64, {length} tokens: largest, relative mean square.\n")
    _row("CP", "out", "dq", "dk", "dv")
    _row(*["---"] * 5)
    for cp_size in (1, 2, 4, 8, 16):
        how = zigzag(cp_size)
        shards = [torch.cat([how.shard(x, r, 0) for r in range(cp_size)]) for x in tensors]
        group = LocalRing(cp_size)
        found = _results(
            shards, torch.bfloat16, lambda q, k, v, g=group: ring_attention(q, k, v, group=g)
        )
        whole = [how.unshard(x.chunk(cp_size), 0).double() for x in found]
        pairs = [(a - b, b) for a, b in zip(whole, exact, strict=True)]
        _row(cp_size, *(f"{x.abs().max():.1e}, {x.norm() / y.norm():.2e}" for x, y in pairs))


def _results(
    tensors: list[Tensor], dtype: torch.dtype, call: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> list[Tensor]:
    """out, dq, dk, dv."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in tensors[:3])
    out = call(q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3].to(dtype))]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, head_dim, repeat in ((balance, 128, 1), (cpu, 64, 3), (gpu, 128, 3)):
        each = verbs.add_parser(verb.__name__, help=(verb.__doc__ or "").strip())
        each.set_defaults(run=verb)
        each.add_argument("--heads", type=int, default=4)
        each.add_argument("--kv-heads", type=int, default=1)
        each.add_argument("--head-dim", type=int, default=head_dim)
        each.add_argument("--local-tokens", type=int, default=262_144)
        each.add_argument("--cp", type=int, default=16)
        each.add_argument("--lengths", type=int, nargs="+", default=[16_384, 32_768])
        each.add_argument("--repeat", type=int, default=repeat)
        each.add_argument("--seeds", type=int, default=3)
        each.add_argument("--device", default="cuda")
    return parser


if __name__ == "__main__":
    arguments = _parser().parse_args()
    where = platform.processor() or platform.machine()
    if arguments.verb == "gpu" and torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    today = datetime.date.today().isoformat()
    print(f"`python {' '.join(sys.argv)}`, {today}, torch {torch.__version__}, {where}\n")
    try:
        arguments.run(arguments)
    except InputError as error:
        sys.exit(f"error: {error}")
