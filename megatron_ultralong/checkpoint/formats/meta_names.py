"""Meta's names and layouts of a Llama's weights: shards, and the order of rotary dimensions."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from megatron_ultralong.model.shape import ModelConfig

Heads = Literal["none", "query", "key"]


@dataclasses.dataclass(frozen=True)
class MetaTensor:
    """Where a Hugging Face tensor is in Meta's files."""

    name: str
    axis: int | None
    """Axis that shards divide; None: every shard holds the whole tensor."""
    heads: Heads = "none"
    """Heads whose rotary dimensions have another order."""


_OUTSIDE = {
    "model.embed_tokens.weight": MetaTensor("tok_embeddings.weight", 0),
    "model.norm.weight": MetaTensor("norm.weight", None),
    "lm_head.weight": MetaTensor("output.weight", 0),
}
_LAYER = {
    "input_layernorm": MetaTensor("attention_norm", None),
    "self_attn.q_proj": MetaTensor("attention.wq", 0, "query"),
    "self_attn.k_proj": MetaTensor("attention.wk", 0, "key"),
    "self_attn.v_proj": MetaTensor("attention.wv", 0),
    "self_attn.o_proj": MetaTensor("attention.wo", 1),
    "post_attention_layernorm": MetaTensor("ffn_norm", None),
    "mlp.gate_proj": MetaTensor("feed_forward.w1", 0),
    "mlp.up_proj": MetaTensor("feed_forward.w3", 0),
    "mlp.down_proj": MetaTensor("feed_forward.w2", 1),
}


def meta_tensor(name: str) -> MetaTensor:
    """Meta's place for the Hugging Face tensor ``name``.

    ``model.layers.3.self_attn.q_proj.weight`` is ``layers.3.attention.wq.weight``.
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    tensor = _LAYER[part]
    return dataclasses.replace(tensor, name=f"layers.{layer}.{tensor.name}.weight")


def to_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of q or k from Meta's rotary order to that of Hugging Face and Megatron.

    Meta rotates dimensions (0, 1), (2, 3), …; the others rotate (0, D/2), (1, D/2 + 1), …:
    the rows of a head of 4 go from ``0 1 2 3`` to ``0 2 1 3``.
    """
    hidden = weight.shape[-1]
    # [heads, D/2 pairs, 2, hidden] -> [heads, 2, D/2 pairs, hidden]
    return weight.reshape(num_heads, -1, 2, hidden).transpose(1, 2).reshape(-1, hidden)


def to_pairs(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """The inverse of :func:`to_halves`."""
    hidden = weight.shape[-1]
    return weight.reshape(num_heads, 2, -1, hidden).transpose(1, 2).reshape(-1, hidden)


def num_heads(model: ModelConfig, heads: Heads) -> int:
    """Heads of that kind."""
    return model.num_attention_heads if heads == "query" else model.num_query_groups
