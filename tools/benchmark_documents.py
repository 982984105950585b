"""Processor time that the documents of a row take of a training step, beside the whole step's.

    python tools/benchmark_documents.py

One rank of two context-parallel ones runs alone in this process, with copies of what the other
would send: the program's own step, over rows on disk, of a model as large as the demo's. Document
work is all that a row without documents would not need: boundaries read, plans of the ring, loops
over documents around the kernel's calls, and what cuDNN's kernel would ask on a GPU, asked here.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import megatron.core
import numpy as np
import torch
import torch.distributed as dist
from rank_benchmark import lone_group
from rank_benchmark.job import RankJob

from megatron_ultralong.attention.kernels import block_attention, cpu, cudnn
from megatron_ultralong.attention.ring import function
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.run import MemoryConfig
from megatron_ultralong.config.training import DataConfig, PretrainConfig
from megatron_ultralong.data.rows.indexed import IndexedWriter, token_dtype
from megatron_ultralong.data.rows.packed import PackedRows, boundaries_prefix
from megatron_ultralong.data.rows.stored import StoredRow
from megatron_ultralong.mcore import batch
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.model.shape import MODELS
from megatron_ultralong.training.row_source import PackedRowSource
from megatron_ultralong.training.step import LanguageModelStep

DEMO = dataclasses.replace(MODELS["demo"], max_position_embeddings=262144)


class Meter:
    """Seconds of this process's processor time by part; a part inside another is not its time."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._inner = [0.0]

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside."""
        self._inner.append(0.0)
        start = time.process_time()
        try:
            yield
        finally:
            taken = time.process_time() - start
            self.seconds[name] += taken - self._inner.pop()
            self.calls[name] += 1
            self._inner[-1] += taken

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Count the calls of a function."""
        expected: Callable[..., Any] = getattr(owner, attribute)

        @functools.wraps(expected)
        def counted(*arguments: Any, **keywords: Any) -> Any:
            with self.part(name):
                return expected(*arguments, **keywords)

        setattr(owner, attribute, counted)

    def wrap_property(self, owner: type, attribute: str, name: str) -> None:
        """Count the readings of a property."""
        expected = owner.__dict__[attribute].fget

        def counted(self_: Any) -> Any:
            with self.part(name):
                return expected(self_)

        setattr(owner, attribute, property(counted))


DOCUMENT_PARTS = (
    "boundaries read",
    "loss mask",
    "area of the row",
    "assignment to the ranks",
    "positions that start again",
    "plan of the ring",
    "loop around the kernel",
    "runs for cuDNN",
)


def watch(meter: Meter) -> None:
    """Count every place where a step looks at documents."""
    meter.wrap_property(StoredRow, "cu_seqlens", "boundaries read")
    meter.wrap(StoredRow, "loss_mask", "loss mask")
    meter.wrap(LanguageModelStep, "_row_area", "area of the row")
    meter.wrap(batch, "balanced", "assignment to the ranks")
    meter.wrap(batch, "document_positions", "positions that start again")
    meter.wrap(function, "row_plan", "plan of the ring")
    meter.wrap(cudnn, "_runs", "runs for cuDNN")
    for name in ("room_for", "room_for_gradients"):
        _touch(name)
        meter.wrap(cpu, name, "memory of the results")
    for direction in ("forward", "backward"):
        _ask_cudnn_too(direction)
        meter.wrap(block_attention, direction, "loop around the kernel")
        meter.wrap(cpu.CpuKernel, direction, "loop around the kernel")
        meter.wrap(cpu, f"_{direction}", "kernel")


def _touch(name: str) -> None:
    """Meet the pages of results where memory is asked for, as without documents."""
    expected = getattr(cpu, name)

    def touched(*tensors: Any) -> list[Any]:
        return [room.zero_() for room in expected(*tensors)]

    setattr(cpu, name, touched)


def _ask_cudnn_too(direction: str) -> None:
    expected = getattr(block_attention, direction)

    @functools.wraps(expected)
    def asking(*arguments: Any) -> Any:
        _, inputs, *_ = arguments
        if inputs.documents is not None:
            cudnn.CUDNN.runs(inputs.documents)
        return expected(*arguments)

    setattr(block_attention, direction, asking)


def write_rows(prefix: Path, seq_length: int, num_documents: int, num_rows: int) -> PackedRows:
    """Rows of random tokens, each of documents of random lengths."""
    generator = np.random.default_rng(0)
    with (
        IndexedWriter(prefix, token_dtype(DEMO.vocab_size)) as rows,
        IndexedWriter(boundaries_prefix(prefix), np.dtype("<i4")) as edges,
    ):
        for _ in range(num_rows):
            rows.add(generator.integers(DEMO.vocab_size, size=seq_length))
            inner = generator.choice(seq_length - 1, num_documents - 1, replace=False) + 1
            edges.add(np.asarray([seq_length, 0, *np.sort(inner), seq_length]))
    return PackedRows(prefix)


def measure(seq_length: int, num_documents: int, cp_assignment: Any) -> tuple[float, Meter]:
    """Processor seconds of a step of rank 0, and of its parts; the second step counts."""
    config = PretrainConfig(
        train_iters=2,
        global_batch_size=1,
        precision="fp32",
        parallel=ParallelConfig(context_parallel_size=2, cp_assignment=cp_assignment),
        data=DataConfig(seq_length=seq_length, document_mask="block"),
        memory=MemoryConfig(loss_tile_size=4096, sequence_tile_size=4096),
    )
    meter = Meter()
    watch(meter)
    lone_group.start(0, 2)
    try:
        with tempfile.TemporaryDirectory() as folder, parallel_groups(config.parallel, 1) as groups:
            rows = write_rows(Path(folder) / "train", seq_length, num_documents, 2)
            source = PackedRowSource(rows, 1, ())
            job = RankJob(config, DEMO, groups, source)
            job.iteration(seq_length)
            job.rows = _Next(source)
            meter.seconds.clear()
            meter.calls.clear()
            start = time.process_time()
            job.iteration(seq_length)
            return time.process_time() - start, meter
    finally:
        dist.destroy_process_group()


class _Next:
    """The row after: the first step's is known already."""

    def __init__(self, source: PackedRowSource) -> None:
        self._source = source

    def row(self, sample: int) -> Any:
        return self._source.row(sample + 1)

    def name(self, sample: int) -> str:
        return self._source.name(sample + 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seq-length", type=int, default=262144)
    parser.add_argument("--documents", type=int, default=20000)
    parser.add_argument("--cp-assignment", choices=["zigzag", "balanced"], default="balanced")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    whole, meter = measure(arguments.seq_length, arguments.documents, arguments.cp_assignment)
    print(
        f"`python {' '.join(sys.argv)}`, {datetime.date.today().isoformat()}, torch "
        f"{torch.__version__}, Megatron-Core {megatron.core.__version__}\n\n"
        "| part of a step | calls | processor time, ms | of the step |\n| --- | --- | --- | --- |"
    )
    for name in (*DOCUMENT_PARTS, "kernel", "memory of the results"):
        seconds = meter.seconds[name]
        print(f"| {name} | {meter.calls[name]:,} | {1000 * seconds:,.1f} | {seconds / whole:.3%} |")
    total = sum(meter.seconds[name] for name in DOCUMENT_PARTS)
    print(f"| **all document work** | | {1000 * total:,.1f} | **{total / whole:.3%}** |")
    print(f"| the whole step | | {1000 * whole:,.0f} | 100 % |")


if __name__ == "__main__":
    main()
