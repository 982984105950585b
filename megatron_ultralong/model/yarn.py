"""Rotary frequencies of an extended context: YaRN and its ablation rivals.

All frequencies are float64. Notation of YaRN (arXiv 2309.00071): ``D`` the head size, ``b`` the
rotary base, ``theta_d = b^(-2d/D)``, ``L`` the original context, ``s`` the scaling factor,
``r_d = L * theta_d / (2 pi)`` the rotations that dimension ``d`` makes over ``L``. YaRN mixes
(equations 17-18) ``theta'_d = (1 - gamma_d) * theta_d / s + gamma_d * theta_d``.

Two ramps ``gamma_d`` are in use and both are here:

* ``rotations``: ``clamp((r_d - beta_slow) / (beta_fast - beta_slow), 0, 1)``, the paper's equation
  18; Hugging Face's ``rope_type: llama3`` is the same formula.
* ``dimensions``: linear in ``d`` between the two dimensions that make ``beta_fast`` and
  ``beta_slow`` rotations, rounded outwards; Hugging Face's ``rope_type: yarn`` and Megatron-Core.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from megatron_ultralong.model.shape import MOST_POSITIONS
from megatron_ultralong.program.errors import InputError, shown
from megatron_ultralong.program.fields import Range, check_ranges

if TYPE_CHECKING:  # a command line is read without numpy
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]

Ramp = Literal["rotations", "dimensions"]
ScalingFactor = Annotated[
    float, Range(1, 1_000_000, rule="it is the target context divided by the original one")
]
"""``s``: target context / original context; 128, 256, 512 for 1M, 2M, 4M over 8192."""
ContextLength = Annotated[int, Range(1, MOST_POSITIONS, rule="rotations are counted over it")]
"""``L``: a context over which rotations are counted, in tokens."""
Rotations = Annotated[float, Range(1e-6, 1_000_000)]
"""Over ``L``."""
TEMPERATURES = Range(0.01, 100, rule="logits of attention are multiplied by its square")
"""Of attention: scales of cos and sin, whose square attention logits get."""


def yarn_attention_factor(scaling_factor: float) -> float:
    """YaRN's attention temperature ``0.1 ln(s) + 1`` (arXiv 2309.00071, equation 22)."""
    return 0.1 * math.log(scaling_factor) + 1.0 if scaling_factor > 1.0 else 1.0


def mscale_attention_factor(scaling_factor: float, mscale: float, mscale_all_dim: float) -> float:
    """``(0.1 m ln s + 1) / (0.1 n ln s + 1)``, what DeepSeek's two keys of a rope block make of it.

    transformers computes it so (``modeling_rope_utils``). Infinite where the divisor is 0.
    """
    stretch = math.log(max(scaling_factor, 1.0))
    divisor = 0.1 * mscale_all_dim * stretch + 1
    return (0.1 * mscale * stretch + 1) / divisor if divisor else math.inf


@dataclasses.dataclass(frozen=True)
class _Scaled:
    """What all scalings have."""

    scaling_factor: ScalingFactor

    def __post_init__(self) -> None:
        check_ranges(self, where="rope scaling")


@dataclasses.dataclass(frozen=True)
class YarnConfig(_Scaled):
    """NTK-by-parts interpolation; the defaults are the favoured reading of arXiv 2504.06214."""

    original_max_position_embeddings: ContextLength = 8192
    beta_fast: Rotations = 4.0
    """Dimensions with more keep their frequency."""
    beta_slow: Rotations = 1.0
    """Dimensions with fewer are divided by ``s``."""
    ramp: Ramp = "rotations"
    """How the frequencies between are mixed; see the module."""
    attention_factor: Annotated[float, TEMPERATURES] = 1.0
    truncate: bool = True
    """Round the ends of the ramp by dimensions outwards, to whole dimensions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_slow >= self.beta_fast:
            raise InputError(
                f"beta_slow ({self.beta_slow}) must be below beta_fast ({self.beta_fast}): the "
                "ramp runs from slow to fast dimensions; lower the first or raise the second"
            )
        if self.ramp not in get_args(Ramp):
            raise InputError(f"ramp must be 'rotations' or 'dimensions', not {self.ramp!r}")
        if not self.truncate and self.ramp == "rotations":
            raise InputError("truncate false needs ramp 'dimensions': 'rotations' rounds nothing")


class NtkConfig(_Scaled):
    """NTK-aware scaling: ``b' = b * s^(D/(D-2))``, all dimensions (ablation)."""


class LinearConfig(_Scaled):
    """Position interpolation: ``theta_d / s`` (arXiv 2306.15595; ablation)."""


RopeScaling = YarnConfig | NtkConfig | LinearConfig | None
"""What is done to the rotary frequencies; ``None`` leaves them as they are."""


def in_words(scaling: RopeScaling) -> str:
    """``linear, scaling_factor 8.0``, for messages."""
    if scaling is None:
        return "no scaling"
    method = type(scaling).__name__.removesuffix("Config").lower()
    return ", ".join([method, *(f"{name} {value}" for name, value in vars(scaling).items())])


def published_scaling(name: str) -> RopeScaling:
    """The scaling in the ``config.json`` of a published model: llama3 over 8,192, or none."""
    factor = {"llama3.1": 8.0, "llama3.2": 32.0}.get(name.split("-")[0])
    return YarnConfig(factor) if factor else None


def raw_context(scaling: RopeScaling, positions: int) -> int:
    """Positions of a model before it was scaled, given those that it has: what a scaling scales.

    A block that counts rotations states it. Linear and NTK-aware scaling do not, and
    ``positions`` is theirs times it, rounded down, as everything here writes it (linear x4 over
    128 has 512).
    """
    if scaling is None:
        return positions
    if isinstance(scaling, YarnConfig):
        return scaling.original_max_position_embeddings
    return max(1, math.ceil(positions / scaling.scaling_factor - 1e-9))


def describe(scaling: RopeScaling, positions: int) -> str:
    """For people: ``llama3 x8 over 8,192 (131,072 positions)``."""
    text = "not scaled"
    if isinstance(scaling, LinearConfig | NtkConfig):
        method = "linear" if isinstance(scaling, LinearConfig) else "ntk"
        text = f"{method} x{scaling.scaling_factor:g} over {raw_context(scaling, positions):,}"
    elif isinstance(scaling, YarnConfig):
        method = "llama3" if scaling.ramp == "rotations" else "yarn"
        text = f"{method} x{scaling.scaling_factor:g} over "
        text += f"{scaling.original_max_position_embeddings:,}, "
        text += f"betas {scaling.beta_slow:g} and {scaling.beta_fast:g}"
        if scaling.attention_factor != 1.0:
            text += f", temperature {scaling.attention_factor:.6g}"
        if not scaling.truncate:
            text += ", ends of the ramp not rounded"
    return f"{text} ({positions:,} positions)"


def rope_inv_freq(head_dim: int, rotary_base: float) -> FloatArray:
    """Plain frequencies ``theta_d = b^(-2d/D)``, shape [head_dim // 2], in radians a position."""
    import numpy as np

    return float(rotary_base) ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


def yarn_inv_freq(config: YarnConfig, head_dim: int, rotary_base: float) -> FloatArray:
    """YaRN's frequencies, shape [head_dim // 2] (arXiv 2309.00071, equations 17-18)."""
    inv_freq = rope_inv_freq(head_dim, rotary_base)
    ramp = _rotations_ramp if config.ramp == "rotations" else _dimensions_ramp
    gamma = ramp(config, head_dim, rotary_base)
    return (1.0 - gamma) * inv_freq / config.scaling_factor + gamma * inv_freq


def _rotations_ramp(config: YarnConfig, head_dim: int, rotary_base: float) -> FloatArray:
    import numpy as np

    length = config.original_max_position_embeddings
    rotations = length * rope_inv_freq(head_dim, rotary_base) / (2.0 * math.pi)
    gamma = (rotations - config.beta_slow) / (config.beta_fast - config.beta_slow)
    return np.clip(gamma, 0.0, 1.0)


def _dimensions_ramp(config: YarnConfig, head_dim: int, rotary_base: float) -> FloatArray:
    import numpy as np

    def dimension_with(rotations: float) -> float:
        length = config.original_max_position_embeddings
        return (
            head_dim
            * math.log(length / (rotations * 2.0 * math.pi))
            / (2.0 * math.log(rotary_base))
        )

    low, high = dimension_with(config.beta_fast), dimension_with(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0.0), min(high, head_dim - 1.0)
    if low == high:
        high += 0.001  # as upstream: a step, not a division by zero
    dimension = np.arange(head_dim // 2, dtype=np.float64)
    return 1.0 - np.clip((dimension - low) / (high - low), 0.0, 1.0)


def inv_freq(scaling: RopeScaling, head_dim: int, rotary_base: float) -> FloatArray:
    """Frequencies under any scaling, shape [head_dim // 2], in radians a position."""
    if isinstance(scaling, YarnConfig):
        return yarn_inv_freq(scaling, head_dim, rotary_base)
    plain = rope_inv_freq(head_dim, effective_rotary_base(scaling, head_dim, rotary_base))
    return plain / scaling.scaling_factor if isinstance(scaling, LinearConfig) else plain


def effective_rotary_base(scaling: RopeScaling, head_dim: int, rotary_base: float) -> float:
    """The base that the scaled frequencies are powers of: NTK-aware scaling moves it."""
    if isinstance(scaling, NtkConfig) and head_dim > 2:  # of two, the one frequency is 1
        return float(rotary_base * scaling.scaling_factor ** (head_dim / (head_dim - 2)))
    return float(rotary_base)


def attention_factor(scaling: RopeScaling) -> float:
    """Scale of cos and sin under any scaling; attention logits get its square."""
    return scaling.attention_factor if isinstance(scaling, YarnConfig) else 1.0


def hf_rope_scaling(scaling: RopeScaling) -> dict[str, Any] | None:
    """The Hugging Face ``rope_scaling`` block that reproduces ``scaling`` exactly.

    ``rotations`` becomes ``llama3``, ``dimensions`` becomes ``yarn``, linear ``linear``; NTK-aware
    scaling and none need no block (``rope_theta`` is :func:`effective_rotary_base`).

    Raises:
        InputError: no block can express it: ``rope_type: llama3`` has no temperature.
    """
    if scaling is None or isinstance(scaling, NtkConfig):
        return None
    if isinstance(scaling, LinearConfig):
        return {"rope_type": "linear", "factor": float(scaling.scaling_factor)}
    block: dict[str, Any] = {
        "factor": float(scaling.scaling_factor),
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    }
    if scaling.ramp == "dimensions":
        return {
            "rope_type": "yarn",
            **block,
            "beta_fast": float(scaling.beta_fast),
            "beta_slow": float(scaling.beta_slow),
            "attention_factor": float(scaling.attention_factor),
            **({} if scaling.truncate else {"truncate": False}),
        }
    if scaling.attention_factor != 1.0:
        raise InputError(
            f"no Hugging Face rope block expresses ramp 'rotations' with attention_factor "
            f"{scaling.attention_factor}: rope_type 'llama3' has no temperature; train with "
            "attention_factor 1.0, or with ramp 'dimensions' (rope_type 'yarn')"
        )
    return {
        "rope_type": "llama3",
        **block,
        "low_freq_factor": float(scaling.beta_slow),
        "high_freq_factor": float(scaling.beta_fast),
    }


_ROTATIONS = {"factor", "original_max_position_embeddings"}
_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "llama3": (_ROTATIONS | {"low_freq_factor", "high_freq_factor"}, set()),
    "yarn": (_ROTATIONS, {"beta_fast", "beta_slow", "attention_factor", "truncate"}),
}
"""Keys of a block by its rope type: those that it needs, and others whose meaning is known."""


def from_hf_rope_scaling(block: Mapping[str, Any] | None) -> RopeScaling:
    """The scaling that a Hugging Face ``rope_scaling`` block means; the inverse of the above.

    Raises:
        InputError: the rope type is not one of default, linear, llama3 and yarn, or the block
            lacks a key or has one whose meaning is not known here.
    """
    if block is None:
        return None
    rope_type = block.get("rope_type", block.get("type", "default"))
    if rope_type not in _KEYS:
        raise InputError(
            f"rope_type {shown(rope_type)} is not supported; known: {', '.join(sorted(_KEYS))}: "
            "state one of these in its place, and train the model on with it"
        )
    values = {
        key: value
        for key, value in block.items()
        if key not in ("rope_type", "type", "rope_theta") and value is not None
    }
    needed, others = _KEYS[rope_type]
    unknown, missing = sorted(set(values) - needed - others), sorted(needed - set(values))
    if unknown or missing:
        raise InputError(
            f"rope_scaling of rope_type {rope_type!r}: missing keys {missing}, unknown keys "
            f"{shown(unknown)}; transformers does not look at keys of another rope_type: remove "
            "them, or state the rope_type that the model was trained with"
        )
    if rope_type == "default":
        return None
    factor = float(values["factor"])
    if rope_type == "linear":
        return LinearConfig(factor)
    length = int(values["original_max_position_embeddings"])
    if rope_type == "llama3":
        return YarnConfig(
            factor, length, float(values["high_freq_factor"]), float(values["low_freq_factor"])
        )
    return YarnConfig(
        factor,
        length,
        float(values.get("beta_fast", 32.0)),
        float(values.get("beta_slow", 1.0)),
        "dimensions",
        float(values.get("attention_factor", yarn_attention_factor(factor))),
        bool(values.get("truncate", True)),
    )


def wrapped_angles(positions: npt.NDArray[np.int64], frequencies: FloatArray) -> FloatArray:
    """Angles ``position * frequency`` in [-pi, pi], float64, shape [S, head_dim // 2].

    The product is rounded once in float64: at position 4,194,303 that is an error of at most
    4.7e-10 rad, where float32 is wrong by up to 0.25 rad.
    """
    import numpy as np

    angles = positions.astype(np.float64)[:, None] * frequencies[None, :]
    return np.asarray(np.remainder(angles + math.pi, 2.0 * math.pi) - math.pi)
