"""Rope blocks: those of the matrix, and those that tell readings apart."""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_ultralong.model.yarn import (
    LinearConfig,
    RopeScaling,
    YarnConfig,
    yarn_attention_factor,
)

FACTOR = 8.0
MORE = ", more positions"
"""End of the name of a block in a model of more positions than the factor times the original."""


def scalings(original: int, factor: float = FACTOR) -> dict[str, RopeScaling]:
    """The blocks of the matrix, for a model of ``original`` positions."""
    usual = YarnConfig(factor, original, 32.0, 1.0, "dimensions", yarn_attention_factor(factor))
    return {
        "none": None,
        "llama3": YarnConfig(factor, original),
        "linear": LinearConfig(factor),
        "yarn usual": usual,
        "yarn a = 1": dataclasses.replace(usual, attention_factor=1.0),
        "yarn betas 4/1": dataclasses.replace(usual, beta_fast=4.0),
        "both": dataclasses.replace(usual, beta_fast=4.0, attention_factor=1.0),
        f"yarn usual{MORE}": usual,
    }


HEAD_DIM, BASE = 64, 10000.0
"""Of tables of cos and sin, which need no model."""
OTHER_BASE = 20000.0
"""No model's that leaves it out: what is at another place is seen by it."""
Given = tuple[dict[str, Any] | None, int]


def telling(original: int) -> dict[str, Given]:
    """Blocks and positions of which every two readings get another rotary embedding, once at least.

    An engine is given them as they are, keys that disagree included.
    """
    lengths = {"factor": FACTOR, "original_max_position_embeddings": original}
    yarn: dict[str, Any] = {"rope_type": "yarn", **lengths}
    ramp = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    twice = {"attention_factor": 1.0, "mscale": 0.0, "mscale_all_dim": 0.0}
    otherwise = {"attention_factor": 1.25, "mscale": 0.5, "mscale_all_dim": 0.0}
    positions = int(FACTOR) * original
    return {
        "none": (None, positions),
        "linear": ({"rope_type": "linear", "factor": FACTOR}, positions),
        "llama3": ({"rope_type": "llama3", **lengths, **ramp}, positions),
        "yarn": (yarn, positions),
        "yarn, more positions": (yarn, positions + positions // 10),
        "yarn, betas": ({**yarn, "beta_fast": 4.0, "beta_slow": 0.5}, positions),
        "yarn, temperature": ({**yarn, "attention_factor": 1.0}, positions),
        "yarn, temperature said twice": ({**yarn, **twice}, positions),
        "yarn, mscale otherwise": ({**yarn, **otherwise}, positions),
        "yarn, both mscales": ({**yarn, "mscale": 0.7, "mscale_all_dim": 0.3}, positions),
        "yarn, one mscale": ({**yarn, "mscale": 0.5}, positions),
        "yarn, not rounded": ({**yarn, "truncate": False}, positions),
    }


FAR: Given = (
    {
        "rope_type": "llama3",
        "factor": 512.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    4_194_304,
)
"""A block of 4M positions, to see what float32 makes of angles."""
