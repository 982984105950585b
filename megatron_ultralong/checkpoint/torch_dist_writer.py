"""Writer of Megatron torch_dist checkpoints: no model, no process group, one weight in memory.

torch.distributed.checkpoint's own file writer writes the bytes; the planner here says what stands
where and makes every tensor at the moment it is written. Megatron-Core's ``dist_checkpointing``
reads the result at any parallel layout.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.distributed.checkpoint.default_planner import (
    DefaultSavePlanner,
    create_default_global_save_plan,
)
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    BytesIOWriteData,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from megatron_ultralong.checkpoint.weight_map import (
    Weight,
    WeightSource,
    extra_state_keys,
    weight_map,
)
from megatron_ultralong.config import ModelConfig
from megatron_ultralong.errors import InputError


def write_torch_dist(
    folder: Path, source: WeightSource, advance: Callable[[int], None] = lambda num_bytes: None
) -> None:
    """Write all weights of ``source`` into ``folder`` as a torch_dist checkpoint.

    ``advance`` is told the bytes of every finished weight.

    Raises:
        InputError: the layers of ``source`` have different dtypes, or it cannot be read.
    """
    folder.mkdir()
    planner = _StreamPlanner(source, advance)
    writer = FileSystemWriter(folder)
    writer.set_up_storage_writer(True)
    local = writer.prepare_local_plan(planner.create_local_plan())
    plans, metadata = create_default_global_save_plan([local])
    plans = writer.prepare_global_plan(plans)
    results = writer.write_data(plans[0], planner).wait()
    writer.finish(metadata, [results])
    torch.save(_common_state(source.model), folder / "common.pt")
    _write_format(folder)


class _StreamPlanner(DefaultSavePlanner):
    """Plans from shapes, and reads a weight when its turn to be written has come."""

    def __init__(self, source: WeightSource, advance: Callable[[int], None]) -> None:
        super().__init__()
        self._source = source
        self._advance = advance
        self._weights: dict[MetadataIndex, Weight] = {}

    def create_local_plan(self) -> SavePlan:
        weights = weight_map(self._source.model)
        _check_dtypes(weights, self._source)
        tensors = [self._tensor_item(weight) for weight in weights]
        objects = [
            WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO, BytesIOWriteData(0))
            for key in extra_state_keys(self._source.model)
        ]
        return SavePlan([*tensors, *objects])

    def _tensor_item(self, weight: Weight) -> WriteItem:
        offset, shape, size = _position(weight, self._source.model.num_layers)
        index = MetadataIndex(weight.key, offset)
        self._weights[index] = weight
        data = TensorWriteData(
            ChunkStorageMetadata(torch.Size(offset), torch.Size(shape)),
            TensorProperties(dtype=self._source.dtype(weight)),
            torch.Size(size),
        )
        return WriteItem(index, WriteItemType.SHARD, tensor_data=data)

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            empty = io.BytesIO()
            torch.save([None], empty)
            return empty
        weight = self._weights[write_item.index]
        tensor = weight.fuse(self._source.read(weight))
        self._advance(tensor.nbytes)
        # a layer's tensor has the axis of the layers before its own: [1, ...]
        return tensor if weight.layer is None else tensor.unsqueeze(0)


def _position(
    weight: Weight, num_layers: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Offset and shape of ``weight`` in the tensor under its key, and that tensor's shape."""
    shape = weight.shape
    if weight.layer is None:
        return (0,) * len(shape), shape, shape
    return (weight.layer, *(0,) * len(shape)), (1, *shape), (num_layers, *shape)


def _check_dtypes(weights: Sequence[Weight], source: WeightSource) -> None:
    dtypes: dict[str, tuple[torch.dtype, Weight]] = {}
    for weight in weights:
        dtype = source.dtype(weight)
        first, other = dtypes.setdefault(weight.key, (dtype, weight))
        if dtype != first:
            raise InputError(
                f"{weight.names[0]} is {dtype}, {other.names[0]} is {first}: Megatron stacks the "
                "layers of a weight in one tensor of one dtype; convert the source to one dtype"
            )


def _common_state(model: ModelConfig) -> dict[str, object]:
    """``common.pt``: what Megatron-Core and Megatron-LM look for beside the tensors.

    Megatron-LM reads the parallel sizes of ``args`` without asking whether they are there, and
    takes the model's shape from it under ``--use-checkpoint-args``.
    """
    args = argparse.Namespace(
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        context_parallel_size=1,
        data_parallel_size=1,
        world_size=1,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        group_query_attention=model.num_query_groups != model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        max_position_embeddings=model.max_position_embeddings,
        padded_vocab_size=model.vocab_size,
        position_embedding_type="rope",
        rotary_base=model.rotary_base,
        rotary_percent=1.0,
        normalization="RMSNorm",
        norm_epsilon=model.norm_epsilon,
        swiglu=True,
        add_bias_linear=False,
        add_qkv_bias=False,
        untie_embeddings_and_output_weights=model.untie_embeddings_and_output_weights,
    )
    return {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": 0,
        # how the layers are keyed: stacked, not one by one
        "content_metadata": {"singleton_local_shards": False},
    }


def _write_format(folder: Path) -> None:
    values = {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    (folder / "metadata.json").write_text(json.dumps(values), encoding="utf-8")
