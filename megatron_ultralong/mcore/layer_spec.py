"""Megatron's own layer specs, with ring attention for ``core_attention``.

Checkpoints do not tell the two apart: Transformer Engine's linear layers hold the norm before them
(``self_attention.linear_qkv.layer_norm_weight``), and the local spec stores its own norms under
those keys.
"""

from __future__ import annotations

import copy

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from megatron_ultralong.layer_config import AttentionImpl, LayerConfig
from megatron_ultralong.mcore.compat import (
    has_transformer_engine,
    require_transformer_engine,
    transformer_engine_norm,
)
from megatron_ultralong.mcore.core_attention import RingCoreAttention
from megatron_ultralong.mcore.recomputed_layer import RecomputedLayer


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, built as Megatron builds a norm.

    Its weight carries ``sequence_parallel``: under sequence parallelism each rank sees its part of
    the sequence only, and Megatron sums the gradients of the parameters that say so. Megatron's
    own wrapper of the torch norm refuses sequence parallelism for want of this mark.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object
    ) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised hidden states, shape as ``x``; the sums are float32."""
        return super().forward(x)


def ring_layer_local_spec() -> ModuleSpec:
    """Llama's layer from Megatron's own modules, without Transformer Engine."""
    spec = copy.deepcopy(get_gpt_layer_local_spec(normalization="RMSNorm"))
    spec.module = RecomputedLayer
    spec.submodules.input_layernorm = RMSNorm
    spec.submodules.pre_mlp_layernorm = RMSNorm
    spec.submodules.self_attention.submodules.core_attention = RingCoreAttention
    return spec


def layer_te_spec(attention: AttentionImpl = "ring") -> ModuleSpec:
    """Llama's layer from Transformer Engine's modules, with our attention or its own.

    Raises:
        InputError: there is no Transformer Engine.
    """
    require_transformer_engine("a layer of Transformer Engine's modules (ring_te_spec)")
    spec = copy.deepcopy(get_gpt_layer_with_transformer_engine_spec())
    spec.module = RecomputedLayer
    if attention == "ring":
        spec.submodules.self_attention.submodules.core_attention = RingCoreAttention
    return spec


class MissingTransformerEngine(RecomputedLayer):
    """Stands for a layer of Transformer Engine's where there is none: it cannot be built."""

    def __init__(self, *_: object, **__: object) -> None:
        require_transformer_engine("ring_te_spec")


def ring_layer_te_spec() -> ModuleSpec:
    """:func:`layer_te_spec`, or without Transformer Engine a spec whose layers say so when built.

    Megatron-LM imports specs by name: a name that is missing would be a ``KeyError``.
    """
    if has_transformer_engine():
        return layer_te_spec()
    spec = ring_layer_local_spec()
    spec.module = MissingTransformerEngine
    return spec


def block_spec(
    config: TransformerConfig, layers: LayerConfig, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage, or of its chunk ``vp_stage``; a norm behind the last one.

    Raises:
        InputError: ``layers`` are Transformer Engine's, and there is none.
    """
    if layers.needs_transformer_engine:
        spec, norm = layer_te_spec(layers.attention), transformer_engine_norm()
    else:
        spec, norm = ring_layer_local_spec(), RMSNorm
    return TransformerBlockSubmodules(
        layer_specs=[spec] * get_num_layers_to_build(config, vp_stage=vp_stage), layer_norm=norm
    )
