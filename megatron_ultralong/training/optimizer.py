"""Megatron's data-parallel wrapper, optimizer and learning-rate schedule, from our config."""

import dataclasses
import gc
import inspect
from collections.abc import Sequence

import torch
from megatron.core import distributed
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import Adam, MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_ultralong.config.optimizer import TYPES, OptimizerConfig
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.optional import installed_version

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.uint8,  # Transformer Engine's own scaled numbers in bytes
}
_PRECISION_AWARE = (
    "master_weight_dtype",
    "exp_avg_dtype",
    "exp_avg_sq_dtype",
    "use_decoupled_grad",
)


def adam_name() -> str:
    """The Adam that Megatron-Core has picked: Transformer Engine's, Apex's or torch's."""
    package = Adam.__module__.split(".")[0]
    number = installed_version(package) or ""  # none: Apex from its sources
    return f"{Adam.__name__} of {package} {number}".strip()


def describe_optimizer(config: OptimizerConfig, num_shards: int) -> str:
    """One line for a run's log: which Adam, and where and how its states are kept."""
    where = f"spread over {counted(num_shards, 'rank')}" if num_shards > 1 else "whole on each rank"
    parts = [f"optimizer: {adam_name()}, states {where}"]
    if config.use_precision_aware_optimizer:
        parts.append(
            f"gradients {config.main_grads_dtype}, master weights {config.main_params_dtype}, "
            f"means {config.exp_avg_dtype}, squares {config.exp_avg_sq_dtype}"
        )
    if config.optimizer_cpu_offload:
        parts.append(f"{config.optimizer_offload_fraction:.0%} of them on the host")
    return "; ".join(parts)


def check_optimizer(config: OptimizerConfig) -> None:
    """Raise InputError where this machine lacks the optimizer that is asked for."""
    if not config.use_precision_aware_optimizer:
        return
    arguments = inspect.signature(Adam).parameters
    lacking = [name for name in _PRECISION_AWARE if name not in arguments]
    if not Adam.__module__.startswith("transformer_engine") or lacking:
        raise InputError(
            "use_precision_aware_optimizer needs a FusedAdam of Transformer Engine that takes "
            f"{', '.join(_PRECISION_AWARE)}, and Megatron-Core found {adam_name()}: install "
            "transformer-engine[pytorch], take NVIDIA's PyTorch image, or leave the flag out"
        )


def wrap_model(
    chunks: Sequence[GPTModel], config: OptimizerConfig | None = None
) -> list[DistributedDataParallel]:
    """The model, with gradient buffers summed over data x context parallel ranks.

    They are float32, unless ``config`` says otherwise. The optimizer's states are spread over those
    ranks too (the distributed optimizer).
    """
    ddp_config = distributed.DistributedDataParallelConfig(
        grad_reduce_in_fp32=config is None or config.main_grads_dtype == "fp32",
        use_distributed_optimizer=True,
    )
    wrapped = [
        DistributedDataParallel(config=chunk.config, ddp_config=ddp_config, module=chunk)
        for chunk in chunks
    ]
    for chunk in chunks:
        chunk.config.finalize_model_grads_func = distributed.finalize_model_grads
    return wrapped


def build_optimizer(
    chunks: Sequence[DistributedDataParallel], config: OptimizerConfig, params_dtype: torch.dtype
) -> MegatronOptimizer:
    """Adam with master weights; norms and other vectors are not decayed."""
    # no_grad: in float32 its parts of the weights would be nodes of a graph that holds the hooks of
    # their gradients, and those the model, in a cycle that Python's collector cannot see.
    with torch.no_grad():
        optimizer = get_megatron_optimizer(
            _megatron_config(config, params_dtype), list(chunks), use_gloo_process_groups=False
        )
    if config.optimizer_cpu_offload:
        # Megatron-Core makes it twice: for whole weights, then for a shard of this rank. The first
        # one's float32 copies hang in a cycle, 4 bytes of host memory for every weight of the rank.
        gc.collect()
    for chunk in chunks:
        chunk.config.grad_scale_func = optimizer.scale_loss
    return optimizer


def _megatron_config(config: OptimizerConfig, params_dtype: torch.dtype) -> MegatronOptimizerConfig:
    pins = torch.cuda.is_available()
    values = dataclasses.asdict(config)  # all of Megatron's names, except for the schedule's
    del values["lr_decay_style"], values["lr_warmup_iters"]
    for name in TYPES:
        values[name] = DTYPES[values[name]]
    megatron = MegatronOptimizerConfig(
        optimizer="adam",
        bf16=params_dtype is torch.bfloat16,
        params_dtype=params_dtype,
        use_distributed_optimizer=True,
        **values,
        pin_cpu_grads=pins,
        pin_cpu_params=pins,
        # Master weights whole, not as the halves that bf16 weights lack: checkpoints would hold the
        # halves as if they were weights, and no run could be resumed from them.
        store_param_remainders=False,
    )
    if config.optimizer_cpu_offload:
        # Offloading goes the way of the precision-aware optimizer. Megatron-Core 0.16 says so by
        # comparing the version of a Transformer Engine that need not be there.
        megatron.use_precision_aware_optimizer = True
        megatron.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = True
    return megatron


def make_states(chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer) -> None:
    """Give an optimizer that has taken no step its states, all 0; every rank calls it.

    Every Adam makes them in its first step, and Megatron-Core can save none before. So one is
    taken that changes nothing: without gradients, at rate 0; then its count is set back.
    """
    for chunk in chunks:
        chunk.zero_grad_buffer()
    groups = optimizer.param_groups
    kept = [(group["lr"], group["weight_decay"]) for group in groups]
    for group in groups:
        group["lr"] = group["weight_decay"] = 0.0
    optimizer.step()
    for group, (rate, decay) in zip(groups, kept, strict=True):
        group["lr"], group["weight_decay"] = rate, decay
        if "step" in group:  # as FusedAdam counts
            group["step"] = 0 if isinstance(group["step"], int) else group["step"] * 0
    for part in optimizer.chained_optimizers:
        inner = part.optimizer
        parts = inner.sub_optimizers if isinstance(inner, HybridDeviceOptimizer) else [inner]
        for state in (state for one in parts for state in one.state.values()):
            if "step" in state:  # as torch's Adam counts
                state["step"] = torch.zeros_like(state["step"])
        if isinstance(inner, HybridDeviceOptimizer):
            inner._sync_sub_optimizers_state_to_hdo()


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
        # A resumed run takes from its checkpoint where it is in the schedule, and nothing else.
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
