"""Adam and its learning rate, and where and how precisely its states are kept."""

import dataclasses
from typing import Annotated, Literal

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import Range, check_ranges

StateType = Literal["fp32", "fp16", "bf16", "fp8"]
MOST_LR = 1e-2
"""Of a model of any size here."""
TYPES = ("main_grads_dtype", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam, its schedule and gradient clipping."""

    lr: Annotated[float, Range(0, 1, rule="Adam moves each weight by about so much in a step")] = (
        3e-5
    )
    """Peak learning rate (the paper's 3e-5)."""
    min_lr: Annotated[float, Range(0, 1)] = 0.0
    """Final learning rate of a decaying schedule."""
    lr_decay_style: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule after the warm-up. The paper does not state its schedule."""
    lr_warmup_iters: Annotated[int, Range(0)] = 0
    """Iterations of linear warm-up."""
    weight_decay: Annotated[float, Range(0, 10)] = 0.1
    """Weight decay, multiplied by the learning rate in each step; not applied to norms."""
    adam_beta1: Annotated[float, Range(0, below=1)] = 0.9
    """Decay rate of the mean of gradients."""
    adam_beta2: Annotated[float, Range(0, below=1)] = 0.95
    """Decay rate of the mean of squared gradients."""
    adam_eps: Annotated[float, Range(1e-37, 1)] = 1e-8
    """Added to the denominator of a step, which is 0 if there was no gradient."""
    clip_grad: Annotated[float, Range(0, 1e30)] = 1.0
    """Largest gradient norm; 0: no clipping."""
    use_precision_aware_optimizer: bool = False
    """Use Transformer Engine's FusedAdam with the types below; needs bf16."""
    main_grads_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of gradients while they are summed over micro-batches and ranks."""
    main_params_dtype: Literal["fp32", "fp16"] = "fp32"
    """Type of master weights."""
    exp_avg_dtype: StateType = "fp32"
    """Type of Adam's means of gradients."""
    exp_avg_sq_dtype: StateType = "fp32"
    """Type of Adam's means of squared gradients."""
    optimizer_cpu_offload: bool = False
    """Keep Adam's states and master weights in host memory and run optimizer steps on the CPU;
    needs bf16."""
    optimizer_offload_fraction: Annotated[float, Range(above=0, most=1)] = 1.0
    """Share of them that is offloaded."""
    overlap_cpu_optimizer_d2h_h2d: bool = False
    """Overlap copies of gradients and weights with optimizer steps on the CPU."""

    @property
    def high_lr(self) -> str:
        """A warning where weights would move far in each step: 3e-1 for 3e-4; else empty."""
        if self.lr <= MOST_LR:
            return ""
        return (
            f"warning: lr {self.lr:g} is above {MOST_LR:g}: Adam moves each weight by about so "
            f"much in a step, and models diverge; the paper's is {type(self)().lr:g}"
        )

    @property
    def offloaded_share(self) -> float:
        """Part of the optimizer that is in host memory."""
        return self.optimizer_offload_fraction if self.optimizer_cpu_offload else 0.0

    def check(self, precision: str) -> None:
        """Raise InputError where the fields do not fit together, or the run's precision."""
        types = {name: getattr(self, name) for name in TYPES}
        lower = [f"{name} '{dtype}'" for name, dtype in types.items() if dtype != "fp32"]
        for name in ("use_precision_aware_optimizer", "optimizer_cpu_offload"):
            if getattr(self, name) and precision != "bf16":
                raise InputError(
                    f"{name} needs precision 'bf16', not '{precision}': it is about the master "
                    "weights and states beside bf16 weights; use --precision bf16"
                )
        if lower and not self.use_precision_aware_optimizer:
            raise InputError(
                f"{', '.join(lower)} needs use_precision_aware_optimizer: other optimizers keep "
                "all of it in fp32; add --use-precision-aware-optimizer"
            )
        if self.optimizer_cpu_offload and self.use_precision_aware_optimizer:
            raise InputError(
                "optimizer_cpu_offload and use_precision_aware_optimizer exclude each other: the "
                "CPU's Adam keeps its states in fp32; choose one"
            )
        check_ranges(self)
        if self.min_lr > self.lr:
            raise InputError(
                f"min_lr ({self.min_lr:g}) must be at most lr ({self.lr:g}): a decaying schedule "
                f"ends at it; use --min-lr {self.lr:g} or less, or raise --lr"
            )
