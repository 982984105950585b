"""Checkpoints of a run: model, optimizer, schedule and position, written aside and renamed."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_ultralong.checkpoint.folder import iteration_folder, write_latest

_SHARDING = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,
    "singleton_local_shards": False,
}
"""The optimizer's states are stored in the shapes of the weights: any layout can read them."""


def _sharded_state(
    model: DistributedDataParallel,
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
    *,
    is_loading: bool,
) -> dict[str, Any]:
    # A copy each: Megatron adds process groups to the dictionary it is given.
    weights = model.module.sharded_state_dict(metadata=dict(_SHARDING))
    return {
        "model": weights,
        "optimizer": optimizer.sharded_state_dict(
            weights, is_loading=is_loading, metadata=dict(_SHARDING)
        ),
        "opt_param_scheduler": scheduler.state_dict(),
    }


def _prepare_torch_adam(optimizer: MegatronOptimizer) -> None:
    """Make states that can be loaded into, where Megatron runs torch's Adam (no Apex, no TE).

    torch's Adam keeps its step with the other states and makes them all in its first step;
    Megatron-Core stores the step once for all, and then misses it parameter by parameter.
    """
    for part in optimizer.chained_optimizers:
        inner = part.optimizer
        if not isinstance(inner, torch.optim.Adam | torch.optim.AdamW):
            continue
        for parameter in (p for group in inner.param_groups for p in group["params"]):
            inner.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        part._set_main_param_and_optimizer_states = functools.partial(
            _set_states_with_step, part, part._set_main_param_and_optimizer_states
        )


def _set_states_with_step(
    part: Any,
    set_states: Callable[[torch.nn.Parameter, dict[str, torch.Tensor]], None],
    model_parameter: torch.nn.Parameter,
    tensors: dict[str, torch.Tensor],
) -> None:
    group, place = part.model_param_group_index_map[model_parameter]
    parameter = part.optimizer.param_groups[group]["params"][place]
    set_states(model_parameter, {"step": part.optimizer.state[parameter]["step"], **tensors})


def _separate_steps(optimizer: MegatronOptimizer) -> None:
    """Give every parameter of torch's Adam a step of its own.

    Megatron-Core loads one tensor into all of them, and every parameter would count it up: after
    one iteration Adam would take itself to be as many steps further as there are parameters.
    """
    for part in optimizer.chained_optimizers:
        for states in part.optimizer.state.values():
            if isinstance(states.get("step"), torch.Tensor):
                states["step"] = states["step"].clone()


def save_checkpoint(
    root: Path,
    iteration: int,
    model: DistributedDataParallel,
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
    position: dict[str, Any],
) -> Path:
    """Write ``root/iter_NNNNNNN`` and make it the latest; every rank calls it.

    Args:
        root: the run's checkpoint folder.
        iteration: iterations done.
        model: wrapped model.
        optimizer: its optimizer.
        scheduler: its learning-rate schedule.
        position: what else a resumed run needs to know; plain values.
    """
    final = iteration_folder(root, iteration)
    aside = final.with_name(final.name + ".partial")
    if dist.get_rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    state = _sharded_state(model, optimizer, scheduler, is_loading=False)
    dist_checkpointing.save(
        sharded_state_dict={
            **state,
            "iteration": iteration,
            "checkpoint_version": 3.0,
            "ultralong": position,
        },
        checkpoint_dir=str(aside),
        content_metadata=dict(_SHARDING),
    )
    dist.barrier()
    if dist.get_rank() == 0:
        if final.exists():  # written before, but a crash kept it from becoming the latest
            shutil.rmtree(final)
        os.replace(aside, final)
        write_latest(root, iteration)
    dist.barrier()
    return final


def load_checkpoint(
    folder: Path,
    model: DistributedDataParallel,
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
) -> dict[str, Any]:
    """Restore everything from ``folder`` (an ``iter_NNNNNNN``); returns the saved position.

    Any tensor, pipeline, context and data parallel sizes can read it.
    """
    _prepare_torch_adam(optimizer)
    state = _sharded_state(model, optimizer, scheduler, is_loading=True)
    state = dist_checkpointing.load(sharded_state_dict=state, checkpoint_dir=str(folder))
    model.module.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    _separate_steps(optimizer)
    scheduler.load_state_dict(state["opt_param_scheduler"])
    return {"iteration": state["iteration"], **state["ultralong"]}
