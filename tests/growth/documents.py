"""Documents of a row, and the ranks that share them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from megatron_ultralong.attention.kernels import cpu, cudnn
from megatron_ultralong.attention.kernels.base import device_edges
from megatron_ultralong.attention.ring.gather import _mask
from megatron_ultralong.attention.ring.plan import boundaries, make_plan, row_plan
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.training import DataConfig, PretrainConfig
from megatron_ultralong.model.shape import MODELS
from megatron_ultralong.plan.job import Job
from megatron_ultralong.plan.work import ring_bytes
from megatron_ultralong.sequence.assignment import Assignment, balanced, zigzag
from megatron_ultralong.sequence.documents import (
    Boundaries,
    document_boundaries,
    document_numbers,
    document_positions,
    loss_mask,
)
from tests.growth.table import Work, counted, edges_of


@counted(500)
def cudnn_runs(n: int, folder: Path) -> Work:
    edges = Boundaries(edges_of(n))
    return lambda: cudnn.CUDNN.runs(edges)


@counted(500)
def cudnn_runs_of_long_documents(n: int, folder: Path) -> Work:
    edges = Boundaries(range(0, 30_000 * n + 1, 30_000))
    return lambda: cudnn.CUDNN.runs(edges)


@counted(2000)
def cpu_groups(n: int, folder: Path) -> Work:
    edges = Boundaries(edges_of(n))
    return lambda: cpu._groups(edges)


@counted(2000)
def boundaries_of_documents(n: int, folder: Path) -> Work:
    edges = torch.tensor(edges_of(n))
    return lambda: boundaries(edges, int(edges[-1]), 1)


@counted(500)
def plan_of_documents(n: int, folder: Path) -> Work:
    edges = tuple(edges_of(n))
    return lambda: make_plan(zigzag(4), edges[-1], edges)


@counted(200)
def plan_of_a_row_in_many_layers(n: int, folder: Path) -> Work:
    """Layers grow with the documents: a look at all of them in each would be the square."""
    edges = torch.tensor(edges_of(n), dtype=torch.int32)
    return lambda: [row_plan(zigzag(2), int(edges[-1]), edges, 1) for _ in range(n)]


@counted(200)
def kernel_questions_in_many_layers(n: int, folder: Path) -> Work:
    edges = Boundaries(edges_of(n))
    device = torch.device("cpu")

    def ask() -> None:
        for _ in range(n):
            cudnn.CUDNN.runs(edges)
            device_edges(edges, device)
            cpu._groups(edges)

    return ask


@counted(400)
def gathered_mask(n: int, folder: Path) -> Work:
    edges = tuple(edges_of(n))
    plan = make_plan(zigzag(4), edges[-1], edges)
    return lambda: _mask(plan, 1)


@counted(2000)
def separators(n: int, folder: Path) -> Work:
    tokens = np.tile(np.asarray([1, 2, 3, 7, 8]), n)
    return lambda: document_boundaries(tokens, (7, 8))


@counted(2000)
def masks_and_positions(n: int, folder: Path) -> Work:
    edges = np.asarray(edges_of(n))

    def make() -> None:
        loss_mask(int(edges[-1]), edges, "block")
        document_numbers(edges)
        document_positions(np.arange(edges[-1]), edges)

    return make


# Ranks of a group


@counted(2000)
def balanced_documents(n: int, folder: Path) -> Work:
    edges = edges_of(n)
    return lambda: balanced(edges, 8)


@counted(16)
def balanced_ranks(n: int, folder: Path) -> Work:
    edges = [0, 64 * n * 60, 64 * n * 64]
    return lambda: balanced(edges, n)


@counted(64)
def chunks_of_all_ranks(n: int, folder: Path) -> Work:
    assignment = Assignment(tuple((rank, 2 * n - 1 - rank) for rank in range(n)))
    return lambda: [assignment.ranges(rank, 4 * n) for rank in range(n)]


@counted(64)
def ring_bytes_of_the_busiest_rank(n: int, folder: Path) -> Work:
    model = MODELS["llama3.1-8b"]
    length = 2 * n * 1024
    config = PretrainConfig(
        global_batch_size=1,
        parallel=ParallelConfig(context_parallel_size=n),
        data=DataConfig(seq_length=length),
    )
    job = Job(model, config, n, length * (length + 1) / 2)
    return lambda: ring_bytes(job)
