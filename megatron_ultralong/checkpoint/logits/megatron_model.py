"""A Megatron checkpoint in Megatron-Core: logits of its GPTModel, or layers one at a time."""

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.spec_utils import build_module

from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.model_state import load_model
from megatron_ultralong.checkpoint.formats.weight_map import model_weights
from megatron_ultralong.checkpoint.logits.comparison import arithmetic
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.mcore.cpu import device
from megatron_ultralong.mcore.layer_spec import RMSNorm, ring_layer_local_spec
from megatron_ultralong.mcore.model import transformer_config
from megatron_ultralong.mcore.parallel import broadcast, last_stage_output, parallel_groups
from megatron_ultralong.mcore.rotary import LocalRotaryEmbedding


@torch.no_grad()
def megatron_logits(
    checkpoint: MegatronCheckpoint,
    tokens_S: torch.Tensor,
    parallel: ParallelConfig | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Logits [S, vocabulary] of one row, on the CPU of every rank of ``parallel``.

    It computes in ``dtype``, float32 or float64. Rotary angles are made in it too, as transformers
    makes them: float32 tables are off by up to 5e-4 rad at position 8,192, and the exact ones of
    training would be compared with that error.
    """
    parallel = parallel or ParallelConfig()
    assert parallel.context_parallel_size == 1, "a row is whole here"
    with parallel_groups(parallel, seed=1) as groups:
        model = load_model(
            *(checkpoint, parallel, groups), dtype=dtype, angle_precision="float32", tile_size=0
        )
        with arithmetic(dtype):
            return _forward(model, tokens_S, groups).cpu()


def _forward(model: Any, tokens_S: torch.Tensor, groups: ProcessGroupCollection) -> torch.Tensor:
    tokens_BS = tokens_S[None].to(device())
    positions_BS = torch.arange(len(tokens_S), device=tokens_BS.device)[None]
    output = last_stage_output(model, tokens_BS, positions_BS, 1)
    size = groups.tp.size()
    columns = model.vocab_size // size
    # [S, vocabulary / tensor parallel size]; only the last stage has it
    local = (
        output[0].contiguous()
        if output is not None
        else torch.empty(len(tokens_S), columns, dtype=model.config.params_dtype, device=device())
    )
    broadcast(local, groups.pp, -1)
    parts = [torch.empty_like(local) for _ in range(size)]
    dist.all_gather(parts, local, group=groups.tp)
    return torch.cat(parts, dim=1)


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
        self._weights = {(weight.key, weight.layer): weight for weight in model_weights(model)}
        config = transformer_config(
            dataclasses.replace(model, num_layers=1),
            ParallelConfig(),
            params_dtype=dtype,
            rope_scaling=checkpoint.rope_scaling,
        )
        layer = build_module(
            *(ring_layer_local_spec(model.family.qk_layernorm),),
            config=config,
            layer_number=1,
            pg_collection=groups,
        )
        self._layer = layer.to(device()).eval()
        # Megatron's own word for where each parameter stands in a checkpoint
        entries = self._layer.sharded_state_dict(
            _PREFIX, metadata={"singleton_local_shards": False}
        )
        parameters = self._layer.named_parameters()
        self._keys = {entries[_PREFIX + name].key: parameter for name, parameter in parameters}
        self._norm = RMSNorm(config, model.hidden_size, eps=model.norm_epsilon).to(device())
        rope = (checkpoint.rope_scaling, model.kv_channels, model.rotary_base)
        rotary = LocalRotaryEmbedding(*rope, groups.cp, device(), "float32")
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
