"""Megatron's own layer specs, with ring attention for ``core_attention``.

Two kinds. Those of our own models are Llama's layer, with norms of queries and keys where the
family has them (:func:`block_spec`). Those that Megatron-LM
imports by name (``--spec``) are whatever layer its configuration describes, with norms, MLP,
experts and the rest of Megatron-Core's choice (:class:`RingLayer`).

Checkpoints do not tell the two apart: Transformer Engine's linear layers hold the norm before them
(``self_attention.linear_qkv.layer_norm_weight``), and the local spec stores its own norms under
those keys.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.transformer import transformer_block, transformer_layer
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from megatron_ultralong.config.run import AttentionImpl, LayerConfig
from megatron_ultralong.mcore import compat, core_attention, recomputed_layer


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, built as Megatron builds a norm.

    Its weight carries ``sequence_parallel``: under sequence parallelism each rank sees its part of
    the sequence only, and Megatron sums the gradients of the parameters that say so. Megatron's
    own wrapper of the torch norm refuses sequence parallelism for want of this mark. The sums are
    float32.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object
    ) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def ring_layer_local_spec(qk_layernorm: bool = False) -> ModuleSpec:
    """Llama's layer from Megatron's own modules, without Transformer Engine.

    With ``qk_layernorm`` queries and keys go through a norm, whose weights every rank has whole.
    A tensor-parallel rank sees its own heads alone: Megatron sums the gradients over the ranks.
    """
    spec = copy.deepcopy(gpt_layer_specs.get_gpt_layer_local_spec(normalization="RMSNorm"))
    spec.module = recomputed_layer.RecomputedLayer
    spec.submodules.input_layernorm = RMSNorm
    spec.submodules.pre_mlp_layernorm = RMSNorm
    attention = spec.submodules.self_attention.submodules
    attention.core_attention = core_attention.RingCoreAttention
    if qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return spec


def layer_te_spec(attention: AttentionImpl = "ring", qk_layernorm: bool = False) -> ModuleSpec:
    """Llama's layer from Transformer Engine's modules, with our attention or its own.

    Raises:
        InputError: there is no Transformer Engine.
    """
    compat.require_transformer_engine("a layer of Transformer Engine's modules (ring_te_spec)")
    spec = copy.deepcopy(
        gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(qk_layernorm=qk_layernorm)
    )
    spec.module = recomputed_layer.RecomputedLayer
    if attention == "ring":
        spec.submodules.self_attention.submodules.core_attention = core_attention.RingCoreAttention
    return spec


class RingLayer(recomputed_layer.RecomputedLayer):
    """The layer that Megatron-Core's configuration describes, with our attention.

    Which modules it has is known when it is built: a spec that is imported by name knows nothing
    of the arguments. So it asks Megatron-Core for its own spec of this layer then.
    """

    uses_transformer_engine: ClassVar[bool]

    def __init__(
        self,
        config: TransformerConfig,
        submodules: Any,
        layer_number: int = 1,
        *arguments: Any,
        vp_stage: int | None = None,
        **others: Any,
    ) -> None:
        """As Megatron-Core builds a layer; ``submodules`` are replaced.

        Raises:
            InputError: there is no Transformer Engine, and it is asked for.
        """
        if self.uses_transformer_engine:
            compat.require_transformer_engine("ring_te_spec")
        layers = gpt_layer_specs.get_gpt_decoder_layer_specs(
            config,
            use_transformer_engine=self.uses_transformer_engine,
            normalization=config.normalization,
            qk_l2_norm=config.qk_l2_norm,
        )
        offset = transformer_layer.get_transformer_layer_offset(config, vp_stage=vp_stage)
        number = layer_number + offset
        # Layers behind the last one predict further tokens, and are as it is.
        submodules = copy.deepcopy(layers[min(number, len(layers)) - 1].submodules)
        submodules.self_attention.submodules.core_attention = core_attention.RingCoreAttention
        super().__init__(config, submodules, layer_number, *arguments, vp_stage=vp_stage, **others)


class RingLocalLayer(RingLayer):
    """Of Megatron-Core's own modules."""

    uses_transformer_engine = False


class RingTransformerEngineLayer(RingLayer):
    """Of Transformer Engine's modules; where there is none it cannot be built, and says so."""

    uses_transformer_engine = True


def ring_spec(layer: type[RingLayer]) -> ModuleSpec:
    """A spec to import by name; which submodules its layers have, they find out themselves."""
    return ModuleSpec(module=layer, submodules=transformer_layer.TransformerLayerSubmodules())


def block_spec(
    config: TransformerConfig, layers: LayerConfig, vp_stage: int | None = None
) -> transformer_block.TransformerBlockSubmodules:
    """The layers of this pipeline stage, or of its chunk ``vp_stage``; a norm behind the last one.

    Raises:
        InputError: ``layers`` are Transformer Engine's, and there is none.
    """
    if layers.needs_transformer_engine:
        spec = layer_te_spec(layers.attention, config.qk_layernorm)
        from megatron.core.extensions.transformer_engine import TENorm

        norm: type[Any] = TENorm
    else:
        spec, norm = ring_layer_local_spec(config.qk_layernorm), RMSNorm
    num_layers = transformer_block.get_num_layers_to_build(config, vp_stage=vp_stage)
    return transformer_block.TransformerBlockSubmodules(
        layer_specs=[spec] * num_layers, layer_norm=norm
    )
