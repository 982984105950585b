"""Layers of a Megatron checkpoint through Megatron-Core's transformer layer, one at a time."""

from __future__ import annotations

import dataclasses

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.spec_utils import build_module

from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.weight_map import weight_map
from megatron_ultralong.checkpoint.logits.float64_mode import arithmetic
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.mcore.cpu import device
from megatron_ultralong.mcore.layer_spec import RMSNorm, ring_layer_local_spec
from megatron_ultralong.mcore.model import transformer_config
from megatron_ultralong.mcore.rotary import LocalRotaryEmbedding

_PREFIX = "decoder.layers."


class MegatronLayers:
    """One layer of Megatron-Core, filled with one layer of the checkpoint after the other.

    It needs Megatron's process ``groups`` of one rank.
    """

    def __init__(
        self,
        checkpoint: MegatronCheckpoint,
        groups: ProcessGroupCollection,
        seq_length: int,
        dtype: torch.dtype,
    ) -> None:
        self._checkpoint = checkpoint
        model = checkpoint.model
        self._weights = {(weight.key, weight.layer): weight for weight in weight_map(model)}
        config = transformer_config(
            dataclasses.replace(model, num_layers=1),
            ParallelConfig(),
            params_dtype=dtype,
            rope_scaling=checkpoint.rope_scaling,
        )
        layer = build_module(
            ring_layer_local_spec(), config=config, layer_number=1, pg_collection=groups
        )
        self._layer = layer.to(device()).eval()
        # Megatron's own word for where each parameter stands in a checkpoint
        entries = self._layer.sharded_state_dict(
            _PREFIX, metadata={"singleton_local_shards": False}
        )
        parameters = dict(self._layer.named_parameters())
        self._keys = {
            entries[_PREFIX + name].key: parameter for name, parameter in parameters.items()
        }
        self._norm = RMSNorm(config, model.hidden_size, eps=model.norm_epsilon).to(device())
        rotary = LocalRotaryEmbedding(
            checkpoint.rope_scaling,
            model.kv_channels,
            model.rotary_base,
            groups.cp,
            device(),
            "float32",
        )
        with arithmetic(dtype):
            self._angles = rotary(seq_length)

    def layer(self, number: int, hidden_SH: torch.Tensor) -> torch.Tensor:
        """Hidden states behind layer ``number``, on the CPU."""
        for key, parameter in self._keys.items():
            parameter.data.copy_(self._checkpoint.read_fused(self._weights[key, number]))
        with arithmetic(hidden_SH.dtype):
            hidden_S1H, _ = self._layer(
                hidden_SH[:, None].to(device()), attention_mask=None, rotary_pos_emb=self._angles
            )
        result: torch.Tensor = hidden_S1H[:, 0].cpu()
        return result

    def final_norm(self, hidden_SH: torch.Tensor) -> torch.Tensor:
        """What the output layer is given, on the CPU."""
        weight = self._weights["decoder.final_layernorm.weight", None]
        self._norm.weight.data.copy_(self._checkpoint.read_fused(weight))
        result: torch.Tensor = self._norm(hidden_SH.to(device())).cpu()
        return result
