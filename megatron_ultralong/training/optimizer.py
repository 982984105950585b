"""Megatron's data-parallel wrapper, optimizer and learning-rate schedule, from our config."""

from __future__ import annotations

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_ultralong.config import OptimizerConfig


def wrap_model(model: GPTModel) -> DistributedDataParallel:
    """The model, with float32 gradient buffers summed over data x context parallel ranks.

    The optimizer's states are spread over those ranks too (the distributed optimizer).
    """
    wrapped = DistributedDataParallel(
        config=model.config,
        ddp_config=DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=True,
        ),
        module=model,
    )
    model.config.finalize_model_grads_func = finalize_model_grads
    return wrapped


def build_optimizer(
    model: DistributedDataParallel, config: OptimizerConfig, params_dtype: torch.dtype
) -> MegatronOptimizer:
    """Adam with float32 master weights; norms and other vectors are not decayed."""
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=config.lr,
            min_lr=config.min_lr,
            weight_decay=config.weight_decay,
            adam_beta1=config.adam_beta1,
            adam_beta2=config.adam_beta2,
            adam_eps=config.adam_eps,
            clip_grad=config.clip_grad,
            bf16=params_dtype is torch.bfloat16,
            params_dtype=params_dtype,
            use_distributed_optimizer=True,
        ),
        [model],
        use_gloo_process_groups=False,
    )
    model.config.grad_scale_func = optimizer.scale_loss
    return optimizer


def build_scheduler(
    optimizer: MegatronOptimizer, config: OptimizerConfig, train_iters: int
) -> OptimizerParamScheduler:
    """The learning rate by iteration: linear warm-up, then the decay style to ``min_lr``."""
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=config.lr_warmup_iters,
        lr_decay_steps=train_iters,
        lr_decay_style=config.lr_decay_style,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=train_iters,
        wd_incr_style="constant",
    )
