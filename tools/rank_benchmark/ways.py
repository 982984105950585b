"""Whole layers with this project's context parallelism and Transformer Engine's, in turns."""

from __future__ import annotations

import argparse
import dataclasses
import gc
from collections.abc import Sequence
from statistics import median

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.mcore.compat import check_layers
from megatron_ultralong.mcore.cpu import device
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranks import is_main_rank
from rank_benchmark.job import RankJob

EXCHANGES = ("p2p", "all_gather", "a2a")
NAME = "megatron-ultralong"


def ways(config: PretrainConfig, exchanges: Sequence[str]) -> dict[str, PretrainConfig]:
    """The same model by name: as the arguments say, recomputed as Megatron-Core does, its peers."""
    memory = dataclasses.replace(
        config.memory,
        recompute_granularity="full",
        sequence_tile_size=0,
        offload_activations=False,
    )
    plain = dataclasses.replace(config, memory=memory)
    layers = dataclasses.replace(
        config.layers, transformer_impl="transformer_engine", attention="te"
    )
    found = {NAME: config, f"{NAME}, layers recomputed as a whole": plain}
    for exchange in exchanges:
        parallel = dataclasses.replace(config.parallel, cp_comm_type=exchange)
        name = f"Megatron-Core, Transformer Engine {exchange}"
        found[name] = dataclasses.replace(plain, layers=layers, parallel=parallel)
    return found


def print_turns(
    arguments: argparse.Namespace,
    config: PretrainConfig,
    model: ModelConfig,
    groups: ProcessGroupCollection,
) -> None:
    """A table of the ways: medians of ``--turns`` steps each, of the slowest and fullest rank."""
    jobs: dict[str, RankJob] = {}
    held: dict[str, float] = {}
    for name, its in ways(config, arguments.beside_transformer_engine).items():
        before = _allocated_gib()
        try:
            its.check_layers()
            its.parallel.check_model(model)
            check_layers(its.layers, deterministic=False, is_saved=False)
            job = RankJob(its, model, groups)
        except InputError as error:  # the same on all ranks: nothing was sent
            _say(f"({name} cannot run: {str(error).splitlines()[0]})")
            continue
        first = job.iteration(config.data.seq_length)  # compiles, and makes the optimizer's states
        gc.collect()
        jobs[name], held[name] = job, _allocated_gib() - before
        _say(f"({name}: first step {first.seconds:.2f} s)")
    steps = {name: [] for name in jobs}
    for _ in range(arguments.turns):
        for name, job in jobs.items():
            steps[name].append(job.iteration(config.data.seq_length))
    _say("\n| way | step, s | peak GiB | loss | time over that of the first | GiB over it |")
    _say("| --- | --- | --- | --- | --- | --- |")
    seconds = peak = 0.0
    for name, its in steps.items():
        found = [median(step.seconds for step in its)]
        # The others are held meanwhile: what the step took beyond, and what this one holds.
        found.append(max(step.peak_allocated_gib - step.start_gib for step in its) + held[name])
        figures = torch.tensor(found, dtype=torch.float64, device=device())
        dist.all_reduce(figures, op=dist.ReduceOp.MAX)
        time, memory = figures.tolist()
        seconds, peak = seconds or time, peak or memory
        _say(
            f"| {name} | {time:.3f} | {memory:.2f} | {its[-1].loss:.4f} | {time / seconds:.2f} | "
            + (f"{memory / peak:.2f} |" if peak else "- |")
        )


def _allocated_gib() -> float:
    return torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def _say(line: str) -> None:
    if is_main_rank():
        print(line, flush=True)
