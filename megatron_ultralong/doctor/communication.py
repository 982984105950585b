"""An all-reduce and a step of ring attention on real ranks, checked and timed.

Under torchrun the ranks are the job's own, over all its hosts; elsewhere two are started here.
"""

import datetime
import functools
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.multiprocessing.spawn import ProcessRaisedException

from megatron_ultralong.attention import reference, ring_attention
from megatron_ultralong.doctor.finding import Finding
from megatron_ultralong.program.errors import counted
from megatron_ultralong.program.ranks import number_of, path_of_modules, under_torchrun, variables
from megatron_ultralong.sequence.assignment import zigzag
from megatron_ultralong.sequence.transport import ProcessGroupRing, Transfer

NUM_RANKS = 2
TIMEOUT_SECONDS = 300
"""Two minutes were not enough to start two ranks on a machine with forty busy processes a core."""
REPEATS = 3
NUM_TOKENS, HEADS, KV_HEADS, HEAD_DIM = 512, 8, 2, 128
"""Of the attention that is checked; the first is made a multiple of what zigzag divides it by.

What it is checked against is quadratic in it, on every rank: at 2,048 tokens the float64 scores
were most of the doctor's time and memory, and find no other mistake.
"""


def communication_findings(megabytes: int) -> Iterator[Finding]:
    """What ranks that exchange ``megabytes`` find; on rank 0 alone, or where no job runs."""
    measured: dict[str, float | str]
    try:
        measured = _on_the_job(megabytes) if under_torchrun() else _on_two_ranks(megabytes)
    except Exception as error:
        yield Finding(
            "problem",
            "communication",
            f"ranks cannot work together: {_reason(error)}",
            "on several interfaces name one by GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME; "
            "NCCL_DEBUG=INFO tells more",
        )
        return
    ranks = f"{counted(str(measured['ranks']), 'rank')} over {measured['backend']}, {megabytes} MiB"
    yield Finding(
        "ok",
        "all-reduce",
        f"{ranks}: {measured['all_reduce_gb_s']:.2f} GB/s a rank (bus bandwidth)",
    )
    yield Finding(
        "ok", "ring step", f"{ranks}: {measured['exchange_gb_s']:.2f} GB/s to the next rank"
    )
    text = (
        f"{measured['tokens']} tokens of {measured['dtype']}: {measured['ring_error']:.1e} from "
        f"float64 over the whole row, the same in one piece is {measured['plain_error']:.1e} off"
    )
    # The ring rounds in other places than attention in one piece, as often.
    if float(measured["ring_error"]) <= 2 * float(measured["plain_error"]):
        yield Finding("ok", "ring attention", text)
    else:
        yield Finding(
            "problem", "ring attention", text, "name another kernel (ULTRALONG_ATTENTION_KERNEL)"
        )
    skew = float(measured["clock_skew_s"])
    if skew > 1.0:
        fix = "synchronize the hosts' clocks (chrony)"
        yield Finding("warning", "clocks", f"of the ranks are {skew:.1f} s apart", fix)


def _reason(error: Exception) -> str:
    """The error itself; what comes from another process has its traceback above it."""
    if isinstance(error, ProcessRaisedException):
        return str(error).strip().splitlines()[-1]
    return f"{type(error).__name__}: {str(error).strip()}"


def _on_two_ranks(megabytes: int) -> dict[str, float | str]:
    use_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= NUM_RANKS
    # That it ends the other rank is not a news beside why.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        with variables(path_of_modules()):
            context = multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
                _rank, args=(folder, megabytes, use_gpus), nprocs=NUM_RANKS, join=False
            )
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not context.join(timeout=1.0):
            if time.monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                load = f"load average {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"
                raise TimeoutError(
                    f"{counted(NUM_RANKS, 'rank')} did not end in {TIMEOUT_SECONDS} s; {load}"
                )
        measured: dict[str, float | str] = json.loads((Path(folder) / "measured").read_text())
        return measured


def _rank(rank: int, folder: str, megabytes: int, use_gpus: bool) -> None:
    store = dist.FileStore(f"{folder}/store", NUM_RANKS)  # type: ignore[attr-defined]
    measured = _measure(
        megabytes, rank if use_gpus else None, store=store, rank=rank, world_size=NUM_RANKS
    )
    if rank == 0:
        (Path(folder) / "measured").write_text(json.dumps(measured))


def _on_the_job(megabytes: int) -> dict[str, float | str]:
    local_rank = number_of("LOCAL_RANK")
    return _measure(megabytes, local_rank if torch.cuda.is_available() else None)


def _measure(megabytes: int, gpu: int | None, **group: Any) -> dict[str, float | str]:
    """What the ranks of a group do together, each on its GPU or all on CPUs."""
    device = torch.device("cpu")
    if gpu is not None:  # made current, and named to NCCL, which would have to guess it
        torch.cuda.set_device(gpu)
        device = torch.device("cuda", gpu)
    dist.init_process_group(
        "gloo" if gpu is None else "nccl",
        device_id=None if gpu is None else device,
        timeout=datetime.timedelta(seconds=TIMEOUT_SECONDS),
        **group,
    )
    try:
        skew = _clock_skew(device)
        return {
            "backend": str(dist.get_backend()),
            "ranks": dist.get_world_size(),
            "all_reduce_gb_s": _all_reduce(megabytes * 2**20, device) / 1e9,
            "exchange_gb_s": _ring_step(megabytes * 2**20, device) / 1e9,
            **_ring_attention(device),
            "clock_skew_s": skew,
        }
    finally:
        dist.destroy_process_group()


def _clock_skew(device: torch.device) -> float:
    """Seconds between the ranks' clocks, just after they have met."""
    dist.barrier()
    now = torch.tensor([time.time()], dtype=torch.float64, device=device)
    times = [torch.empty_like(now) for _ in range(dist.get_world_size())]
    dist.all_gather(times, now)
    return float(max(times) - min(times))


def _all_reduce(num_bytes: int, device: torch.device) -> float:
    """Bus bandwidth in bytes a second: each rank sends and receives 2 (n - 1) / n of the data."""
    size, rank = dist.get_world_size(), dist.get_rank()
    seconds, expected = [], size * (size + 1) / 2
    for _ in range(REPEATS):
        data = torch.full((num_bytes // 4,), float(rank + 1), device=device)
        seconds.append(_seconds(device, functools.partial(dist.all_reduce, data)))
        if not bool((data == expected).all()):
            raise RuntimeError(
                f"an all-reduce of 1 to {size} gave {data.min()} to {data.max()}, not {expected}"
            )
    return 2 * (size - 1) / size * num_bytes / min(seconds)


def _ring_step(num_bytes: int, device: torch.device) -> float:
    """Bytes a second that a rank hands to the next one while it takes as many from the last."""
    assert dist.group.WORLD is not None
    ring = ProcessGroupRing(dist.group.WORLD)
    rank = ring.ranks[0]
    sent = torch.full((num_bytes // 4,), float(rank), device=device)
    received = torch.empty_like(sent)
    before, after = (rank - 1) % ring.size, (rank + 1) % ring.size
    transfers = [[Transfer("send", after, sent), Transfer("receive", before, received)]]
    best = min(_seconds(device, lambda: ring.exchange(transfers).wait()) for _ in range(REPEATS))
    if not bool((received == before).all()):
        raise RuntimeError(f"rank {rank} received other numbers than rank {before} sent")
    return num_bytes / best


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Time of a piece of work that all ranks begin together."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _ring_attention(device: torch.device) -> dict[str, float | str]:
    """Largest difference from float64 of ring attention, and of attention in one piece."""
    size, rank = dist.get_world_size(), dist.get_rank()
    # GPUs' kernels are for bfloat16; float32 shows smaller mistakes.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    length = 2 * size * max(1, NUM_TOKENS // (2 * size))
    generator = torch.Generator().manual_seed(0)
    whole = [
        torch.randn((length, 1, heads, HEAD_DIM), generator=generator).to(device, dtype)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    exact = reference.attention(*whole)
    plain = (reference.attention(*whole, dtype=dtype) - exact).abs().max()
    q, k, v = (zigzag(size).shard(tensor, rank, 0).contiguous() for tensor in whole)
    out = ring_attention(q, k, v, group=dist.group.WORLD)
    error = (out - zigzag(size).shard(exact, rank, 0)).abs().max()
    dist.all_reduce(error, op=dist.ReduceOp.MAX)
    return {
        "tokens": length,
        "dtype": str(dtype).removeprefix("torch."),
        "ring_error": float(error),
        "plain_error": float(plain),
    }


def _wait(device: torch.device) -> None:
    dist.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
