"""Keys of a rope block: what transformers makes of them, or refused with both facts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_ultralong.checkpoint.formats.rope_block import export_block, rope_scaling, rotary_base
from megatron_ultralong.model import yarn
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import JsonObject

HEAD_DIM = 64
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 512}
Values = dict[str, Any]


def in_block(**keys: Any) -> Values:
    return {"rope_parameters": {"rope_theta": 500000.0, **keys}}


READ: dict[str, Values] = {
    "nothing": {},
    "base": {"rope_theta": 77.0},
    "base in the block": in_block(rope_type="default"),
    "base twice": {"rope_theta": 500000.0, **in_block(**YARN)},
    "base of null beside one": {"rope_theta": None, **in_block(**YARN)},
    "old words": {"rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 2}},
    "both words for the type": {"rope_scaling": {**YARN, "type": "yarn"}},
    "both blocks, equal": {"rope_scaling": {"rope_theta": 500000.0, **YARN}, **in_block(**YARN)},
    "both blocks, one empty": {"rope_scaling": {}, **in_block(**YARN)},
    "old base beside the old block": {"rope_theta": 9.0, "rope_scaling": LINEAR},
    "no type": in_block(),
    "length of the model": in_block(**LLAMA3),
    "length beside the block": in_block(**LLAMA3) | {"original_max_position_embeddings": 512},
    "yarn": in_block(**YARN),
    "betas of null": in_block(**YARN, beta_fast=None, beta_slow=None, attention_factor=None),
    "temperature": in_block(**YARN, attention_factor=1.25),
    "mscale": in_block(**YARN, mscale=1.0, mscale_all_dim=1.0),
    "two mscales": in_block(**YARN, mscale=0.707, mscale_all_dim=0.5),
    "mscale of 0": in_block(**YARN, mscale=0.0, mscale_all_dim=0),
    "mscale as the temperature": in_block(
        **YARN, mscale=1.0, mscale_all_dim=1.0, attention_factor=1.0
    ),
    "said twice": in_block(**YARN, attention_factor=1.0, mscale=0.0, mscale_all_dim=0.0),
    "said twice, below 1": in_block(
        **YARN, attention_factor=0.9, mscale=-0.1 / (0.1 * math.log(16)), mscale_all_dim=0.0
    ),
    "not rounded": in_block(**YARN, truncate=False),
    "rounded": in_block(**YARN, truncate=True),
    "finetuned": in_block(**YARN, finetuned=True),
    "finetuned, linear": in_block(**LINEAR, finetuned=False),
    "whole heads": in_block(**YARN, partial_rotary_factor=1.0),
    "factor of null": in_block(**(YARN | {"factor": None})),
}


@pytest.mark.parametrize("values", READ.values(), ids=READ)
def test_keys_mean_what_transformers_makes_of_them(values: Values) -> None:
    values = {"max_position_embeddings": 8192, "head_dim": HEAD_DIM, **values}
    config = JsonObject(values, "c")
    scaling, base = rope_scaling(config), rotary_base(config)
    judge = LlamaRotaryEmbedding(LlamaConfig.from_dict(_copied(values)))
    actual = yarn.inv_freq(scaling, HEAD_DIM, base)
    # transformers computes frequencies in float32: pow and two products round, 2^-24 each
    np.testing.assert_allclose(judge.inv_freq.double().numpy(), actual, rtol=1e-6)
    assert yarn.attention_factor(scaling) == pytest.approx(judge.attention_scaling, rel=1e-12)
    # an export states it in a form that means the same
    for write in (yarn.hf_rope_scaling, export_block):
        config = JsonObject({"rope_scaling": write(scaling), "max_position_embeddings": 1}, "c")
        again = rope_scaling(config)
        assert again == scaling


def _copied(values: Values) -> Values:
    """transformers fills in the blocks it is given."""
    return {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}


REFUSED: dict[str, tuple[Values, str]] = {
    "two blocks": (
        {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default"}},
        r"rope_scaling and rope_parameters disagree: \{'factor': 4.0, .*'linear'\} and .*'default'",
    ),
    "two blocks, the base in one": (
        {"rope_scaling": LINEAR, **in_block(**LINEAR)},
        r"disagree: .*'rope_theta': 10000.0.* and .*'rope_theta': 500000.0.*remove the one",
    ),
    "two bases": (
        {"rope_theta": 10000.0, **in_block(**YARN)},
        r"rope_theta is 10000.0 there, and 500000.0 in the rope block.*remove the one",
    ),
    "base of null": ({"rope_theta": None}, "c: rope_theta is null, and transformers runs no such"),
    "base of null beside a block": (
        {"rope_theta": None, "rope_scaling": LINEAR},
        "c: rope_theta is null, and transformers runs no such",
    ),
    "two types": (
        in_block(**LINEAR, type="yarn"),
        r"rope_type is 'linear' and type is 'yarn': remove the one",
    ),
    "two lengths": (
        in_block(**YARN) | {"original_max_position_embeddings": 256},
        r"is 256 next to the rope block and 512 in it: remove one",
    ),
    "half heads": (
        in_block(**YARN, partial_rotary_factor=0.5),
        r"partial_rotary_factor is 0.5, and whole heads are rotated here \(1.0\).*remove it if",
    ),
    "mscale alone": (
        in_block(**YARN, mscale=0.707),
        r"mscale is 0.707 in the rope block, without the other of mscale and mscale_all_dim.*state "
        "attention_factor",
    ),
    "mscale_all_dim alone": (in_block(**YARN, mscale_all_dim=1), "mscale_all_dim is 1.* state att"),
    "mscale beside a temperature": (
        in_block(**YARN, mscale=1.0, mscale_all_dim=0.5, attention_factor=1.0),
        r"attention_factor is 1.0, and mscale 1.0 and mscale_all_dim 0.5 make it 1.12.*remove",
    ),
    "mscale of 0 beside a temperature": (
        in_block(**YARN, mscale=0.0, mscale_all_dim=0.0, attention_factor=1.25),
        r"attention_factor is 1.25, and mscale 0.0 and mscale_all_dim 0.0 make it 1:",
    ),
    "mscale of minus": (
        in_block(**YARN, mscale=-10 / math.log(16), mscale_all_dim=0.0, attention_factor=1.25),
        r"attention_factor is 1.25, and mscale -3.6\d* and mscale_all_dim 0.0 make it 0:",
    ),
    "mscale elsewhere": (
        in_block(**LINEAR, mscale=1.0, mscale_all_dim=1.0),
        r"'linear': missing keys \[\], unknown keys \['mscale', 'mscale_all_dim'\].*remove them",
    ),
    "factor without a type": (
        in_block(factor=8.0),
        r"rope_type 'default': missing keys \[\], unknown keys \['factor'\].*state the rope_type",
    ),
    "truncate elsewhere": (in_block(**LINEAR, truncate=False), r"unknown keys \['truncate'\]"),
    "a type of text": (in_block(**YARN, truncate="no"), "truncate is 'no', it must be true or"),
    "finetuned of text": (in_block(**YARN, finetuned="yes"), "finetuned is 'yes', it must be true"),
    "dynamic": (in_block(rope_type="dynamic", factor=2.0), "'dynamic' is not supported; known:"),
    "longrope": (
        in_block(rope_type="longrope", factor=2.0, short_factor=[1], long_factor=[2]),
        "'longrope' is not supported; known: default, linear, llama3, yarn",
    ),
    "by layer": (
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        r"unknown keys \['full_attention'\]",
    ),
    "a factor below 1": (
        in_block(**(YARN | {"factor": None, "original_max_position_embeddings": 9000})),
        r"factor is null, and max_position_embeddings \(8192\) is below .* \(9000\)",
    ),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_keys_that_disagree_are_refused(values: Values, message: str) -> None:
    values = {"max_position_embeddings": 8192, "head_dim": HEAD_DIM, **values}
    with pytest.raises(InputError, match=message):
        rope_scaling(JsonObject(values, "c"))
