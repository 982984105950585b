"""Megatron's own layer specs, with ring attention for ``core_attention``."""

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


def ring_layer_te_spec() -> ModuleSpec:
    """Llama's layer from Transformer Engine's modules.

    Raises:
        AssertionError: Megatron-Core finds no Transformer Engine.
    """
    spec = copy.deepcopy(get_gpt_layer_with_transformer_engine_spec())
    spec.module = RecomputedLayer
    spec.submodules.self_attention.submodules.core_attention = RingCoreAttention
    return spec


def ring_block_local_spec(config: TransformerConfig) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage, with our norm behind the last one."""
    return TransformerBlockSubmodules(
        layer_specs=[ring_layer_local_spec()] * get_num_layers_to_build(config),
        layer_norm=RMSNorm,
    )
