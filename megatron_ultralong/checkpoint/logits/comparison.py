"""How far the logits of two models are apart, and how far rounding alone can part them.

:func:`arithmetic` leaves less to rounding: programs compute in float64 what they would compute in
float32 of their own accord.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from megatron_ultralong.config.convert import LogitsDtype
from megatron_ultralong.mcore.float32 import whole_products

POSITIONS = 256
"""Positions whose logits are in memory at a time."""
DTYPES: dict[LogitsDtype, torch.dtype] = {"fp32": torch.float32, "fp64": torch.float64}

_ROUNDINGS: dict[LogitsDtype, float] = {"fp32": 16.0, "fp64": 2.0**20}
_PARTED: dict[LogitsDtype, float] = {"fp32": 1e-3, "fp64": 1e-7}
"""Relative difference of hidden states that no rounding makes."""


def rounding_bound(dtype: LogitsDtype, num_layers: int, max_logit: float) -> float:
    """Largest difference of two logits that passes for rounding: ``k eps sqrt(layers) max|logit|``.

    A product of floating-point numbers is wrong by a fraction of its own size, so the bound grows
    with the logits. Each layer adds errors of its own to the hidden states; they are independent
    of those of the layers before, so they add up as their squares do, and the root of the depth is
    left (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 2.8).

    ``k`` is how many roundings a layer comes to, times what the layers behind it make of them.
    Between right programs it was 10 with the trained weights of SmolLM2-135M, in float32 and in
    float64, and 24 with random ones and small logits; where attention is sharp it grows without a
    limit, as errors do in any such iteration. So in float32 16 are let pass, which costs no time
    in most cases and sees angles of float32 tables, and more is not a proof of a fault: float64
    judges. There 2^20 are let pass. A model may amplify its rounding 65,000 times, and still the
    bound is 8,192 times closer than that of float32: an angle or a temperature that is wrong by
    1e-7 is seen.
    """
    return _ROUNDINGS[dtype] * torch.finfo(DTYPES[dtype]).eps * math.sqrt(num_layers) * max_logit


@dataclasses.dataclass(frozen=True)
class LogitsComparison:
    """How far the logits of two models are apart."""

    seq_length: int
    """Tokens of the prompt."""
    max_difference: float
    """Largest absolute difference of two logits; NaN where one of them is not finite."""
    max_logit: float
    """Largest absolute logit of the first model."""
    mean_kl: float
    """KL divergence of the next-token distributions, in nats, mean over positions."""
    max_kl: float
    """The same at the worst position; at most half the square of ``max_difference``."""
    dtype: LogitsDtype = "fp32"
    """What both programs computed in."""
    bound: float = 0.0
    """What ``max_difference`` may be."""
    layer_differences: tuple[float, ...] = ()
    """Computed layer by layer: ``|h_a - h_b| / |h_a|`` behind each, at the worst position."""
    float32_difference: float | None = None
    """``max_difference`` in float32, where that was more than its bound, and float64 judged."""

    @property
    def equal(self) -> bool:
        """Whether the differences are those of rounding; never where a logit is not finite."""
        return self.max_difference <= self.bound

    @property
    def parted_layer(self) -> int | None:
        """The first layer behind which hidden states differ by more than rounding, if known."""
        for number, difference in enumerate(self.layer_differences):
            if not difference <= _PARTED[self.dtype]:
                return number
        return None


def compare_logits(a_SV: torch.Tensor, b_SV: torch.Tensor) -> LogitsComparison:
    """Differences of logits [S, V]."""
    return compare_tiles(zip(a_SV.split(POSITIONS), b_SV.split(POSITIONS), strict=True))


def compare_tiles(tiles: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> LogitsComparison:
    """Differences of logits [T, V] at some positions after the others.

    KL is computed in float64, ``sum p_a (log p_a - log p_b)``.
    """
    length = 0
    parts = []
    for a, b in tiles:
        length += len(a)
        log_a, log_b = a.double().log_softmax(-1), b.double().log_softmax(-1)
        divergence_T = (log_a.exp() * (log_a - log_b)).sum(-1)
        largest = (a - b).abs().max().double(), a.abs().max().double()
        parts.append(torch.stack([*largest, divergence_T.sum(), divergence_T.max()]))
    # torch's maximum of numbers and NaN is NaN, Python's depends on their order
    parts_P4 = torch.stack(parts)
    difference, max_logit, _, max_kl = parts_P4.amax(0).tolist()
    return LogitsComparison(
        length, difference, max_logit, parts_P4[:, 2].sum().item() / length, max_kl
    )


def arithmetic(dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """A context in which a program that is given tensors of ``dtype`` computes in no narrower one.

    transformers' norms and both programs' rotary angles are float32 of their own accord: inside,
    where ``dtype`` is float64, float32 by name is float64.
    """
    return _Float32MeansFloat64() if dtype == torch.float64 else whole_products()


class _Float32MeansFloat64(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(_widened, args), **{k: _widened(v) for k, v in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
