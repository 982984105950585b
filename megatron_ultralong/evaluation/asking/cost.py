"""What an evaluation will cost, before it starts: FLOPs, GPU-hours at a stated speed, a limit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from megatron_ultralong.evaluation.options import CostConfig
from megatron_ultralong.model.flops import attention_area, forward_flops, peak_tflops
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError


@dataclasses.dataclass(frozen=True)
class CostEstimate:
    """The work of an evaluation."""

    num_samples: int
    num_tokens: int
    """Tokens that pass through the model: prompts and what is generated."""
    flops: float
    tflops: float
    """Assumed speed of one rank in TFLOP/s."""
    num_ranks: int

    @property
    def gpu_hours(self) -> float:
        """Hours of one GPU."""
        return self.flops / (self.tflops * 1e12) / 3600

    @property
    def wall_seconds(self) -> float:
        """Seconds on all ranks together."""
        return self.gpu_hours * 3600 / self.num_ranks

    def __str__(self) -> str:
        """One line, as it stands above an evaluation."""
        return (
            f"{self.num_samples:,} samples, {self.num_tokens:,} tokens, {self.flops:.3g} FLOP: "
            f"{_hours(self.gpu_hours)} GPU-hours at {self.tflops:g} TFLOP/s a GPU, "
            f"{_duration(self.wall_seconds)} on {self.num_ranks}"
        )


def estimate_cost(
    model: ModelConfig,
    samples: Iterable[tuple[int, int]],
    config: CostConfig,
    num_ranks: int = 1,
) -> CostEstimate:
    """Cost of one forward pass over every prompt, and one for every token generated after it.

    The output layer counts for generated tokens alone where there are any, else for all tokens.

    Args:
        model: shape of the model.
        samples: tokens of the prompt and tokens to generate, of every sample still to be done.
        config: the speed to assume.
        num_ranks: GPUs that share the work.
    """
    num_samples, num_tokens, flops = 0, 0, 0.0
    for prompt, generated in samples:
        num_samples += 1
        num_tokens += prompt + generated
        whole = prompt + generated
        # Token i attends to i + 1 of them, in prefill and in decoding alike.
        parts = forward_flops(model, whole, attention_area([0, whole]))
        output = parts.output * (generated / whole if generated else 1.0)
        flops += parts.projections + parts.attention + parts.mlp + output
    return CostEstimate(num_samples, num_tokens, flops, _assumed_tflops(config), num_ranks)


SHARE_OF_PEAK = 0.4
"""Share of a device's dense bf16 peak that long forward passes are assumed to reach: 2,048-token
rows reach less, one rank of an 8B model at 1M tokens reached 52-58 % in training
(benchmarks/training.md)."""
CPU_TFLOPS = 0.03
"""Assumed of a rank on a CPU: float32 products of one or two cores."""


def _assumed_tflops(config: CostConfig) -> float:
    """The speed that the estimate assumes, in TFLOP/s of one rank.

    Raises:
        InputError: the device's peak is not known, and no speed is given.
    """
    if config.estimated_tflops:
        return config.estimated_tflops
    if not torch.cuda.is_available():
        return CPU_TFLOPS
    name = torch.cuda.get_device_name()
    peak = peak_tflops(name)
    if peak is None:
        raise InputError(
            f"the peak of device '{name}' is not known, which the estimate of the cost takes: "
            "give the TFLOP/s to assume as --estimated-tflops"
        )
    return SHARE_OF_PEAK * peak


def check_cost(estimate: CostEstimate, config: CostConfig, *, is_main: bool = True) -> None:
    """Print the estimate, and refuse an evaluation above ``--max-cost``.

    Raises:
        InputError: it costs more than ``config.max_cost``.
    """
    if config.max_cost and estimate.gpu_hours > config.max_cost:
        share = config.max_cost / estimate.gpu_hours
        raise InputError(
            f"the evaluation is estimated at {_hours(estimate.gpu_hours)} GPU-hours ({estimate}), "
            f"above --max-cost {config.max_cost:g}: {100 * share:.2g} % of it would fit; lower "
            "--num-samples or the lengths, or raise --max-cost"
        )
    if is_main and estimate.num_samples:
        tell(f"estimate: {estimate}")


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
