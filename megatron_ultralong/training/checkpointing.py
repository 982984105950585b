"""Checkpoints of a run: model, optimizer, schedule and position, written aside and renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

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
    weights = model.module.sharded_state_dict(metadata=_SHARDING)
    return {
        "model": weights,
        "optimizer": optimizer.sharded_state_dict(
            weights, is_loading=is_loading, metadata=_SHARDING
        ),
        "opt_param_scheduler": scheduler.state_dict(),
    }


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
        content_metadata=_SHARDING,
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
    state = _sharded_state(model, optimizer, scheduler, is_loading=True)
    state = dist_checkpointing.load(sharded_state_dict=state, checkpoint_dir=str(folder))
    model.module.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["opt_param_scheduler"])
    return {"iteration": state["iteration"], **state["ultralong"]}
