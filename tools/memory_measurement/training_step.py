"""Peak of live tensor bytes of the program's own training step, on real gloo ranks of this CPU."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from rank_benchmark import lone_group
from rank_benchmark.job import RankJob

from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.model.shape import ModelConfig
from memory_measurement.live_bytes import LiveBytes

PRELOADED = ["memory_measurement.training_step"]


def peak_bytes(
    model: ModelConfig, config: PretrainConfig, num_ranks: int, *, details: bool = False
) -> list[int]:
    """The most bytes of live tensors in a step of every rank, each a gloo process of its own.

    ``details`` prints the largest tensors.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.set_forkserver_preload(PRELOADED)
        multiprocessing.start_processes(
            _rank,
            args=(num_ranks, Path(folder), model, config, details),
            nprocs=num_ranks,
            start_method="forkserver",
        )
        return [int((Path(folder) / f"peak-{rank}").read_text()) for rank in range(num_ranks)]


def emulated_peak_bytes(
    model: ModelConfig,
    config: PretrainConfig,
    num_ranks: int,
    *,
    rank: int,
    warm_up: int = 0,
    details: bool = False,
) -> int:
    """The same of one rank that runs alone in this process, with copies of what others send.

    ``warm_up``: tokens of the first step's row; 0: as many as in the one that counts.
    """
    lone_group.start(rank, num_ranks)
    try:
        return _measure(model, config, rank, details, warm_up)
    finally:
        dist.destroy_process_group()


def _measure(
    model: ModelConfig, config: PretrainConfig, rank: int, details: bool, warm_up: int = 0
) -> int:
    """Peak of the second step; the first makes what stays: optimizer states, angles, buffers."""
    with parallel_groups(config.parallel, seed=1) as groups, LiveBytes() as live:
        job = RankJob(config, model, groups)
        job.iteration(warm_up or config.data.seq_length)
        live.reset_peak()
        job.iteration(config.data.seq_length)
        if details:
            _print(rank, live)
        return live.peak_bytes


def _rank(
    rank: int,
    num_ranks: int,
    folder: Path,
    model: ModelConfig,
    config: PretrainConfig,
    details: bool,
) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(num_ranks), LOCAL_RANK=str(rank))
    store = dist.FileStore(str(folder / "store"), num_ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks)
    peak = _measure(model, config, rank, details)
    (folder / f"peak-{rank}").write_text(str(peak))
    dist.barrier()
    dist.destroy_process_group()


def _print(rank: int, live: LiveBytes) -> None:
    found: Counter[Any] = Counter()
    number: Counter[Any] = Counter()
    for tensor in live.peak_tensors:
        key = (tensor.operation, tensor.shape, str(tensor.dtype).removeprefix("torch."))
        found[key] += tensor.num_bytes
        number[key] += 1
    lines = [f"rank {rank}: {live.peak_bytes / 2**20:.2f} MiB"]
    lines += [
        f"  {size / 2**20:8.2f} {number[key]:3} x {key}" for key, size in found.most_common(40)
    ]
    print("\n".join(lines), flush=True)
