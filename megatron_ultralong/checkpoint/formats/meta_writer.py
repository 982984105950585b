"""Writer of Meta's Llama folders, streamed: the file is laid out empty, then filled in place."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.checkpoint.disk.large_files import TensorWriter, save_values
from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata
from megatron_ultralong.checkpoint.formats import kind, meta, weight_map
from megatron_ultralong.checkpoint.formats.tensor_file import TensorInfo, record_offsets
from megatron_ultralong.model.families.llama import LLAMA
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.model.yarn import NtkConfig, YarnConfig, describe, effective_rotary_base
from megatron_ultralong.program.errors import InputError, counted


class MetaWriter(TensorWriter):
    """Writes tensors, in any order, into ``num_shards`` files of Meta's format."""

    def __init__(
        self,
        folder: Path,
        tensors: Sequence[tuple[str, TensorInfo]],
        model: ModelConfig,
        num_shards: int,
        *,
        laid_out: bool = False,
    ) -> None:
        """Lay the files out, or open those that were ``laid_out`` already.

        ``tensors`` are Hugging Face names.

        Raises:
            InputError: a tensor does not divide into the shards.
        """
        super().__init__()
        self._model = model
        self._num_shards = num_shards
        layout: dict[str, torch.Tensor] = {}
        for name, info in tensors:
            tensor = meta.meta_tensor(name)
            layout[tensor.name] = torch.empty(self._part(tensor, info.shape), dtype=info.dtype)
        self._tied = weight_map.LM_HEAD not in dict(tensors)
        if self._tied:  # Meta's code has no tied weights: it reads a copy
            embedding = layout[meta.meta_tensor(weight_map.EMBEDDING).name]
            layout[meta.meta_tensor(weight_map.LM_HEAD).name] = torch.empty_like(embedding)
        self._paths = [folder / f"consolidated.{number:02d}.pth" for number in range(num_shards)]
        if not laid_out:
            for path in self._paths:
                with torch.serialization.skip_data():
                    save_values(layout, path)
        # every shard has the same layout
        self._offsets = dict(zip(layout, record_offsets(self._paths[0]), strict=True))

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Fill Hugging Face tensor ``name`` in."""
        tensor = meta.in_meta_order(name, tensor, self._model)
        self._fill(meta.meta_tensor(name), tensor)
        if name == weight_map.EMBEDDING and self._tied:
            self._fill(meta.meta_tensor(weight_map.LM_HEAD), tensor)

    def _part(self, tensor: meta.MetaTensor, shape: Sequence[int]) -> list[int]:
        part = list(shape)
        if tensor.axis is not None:
            if part[tensor.axis] % self._num_shards:
                raise InputError(
                    f"{tensor.name} of shape {part} does not divide into "
                    f"{counted(self._num_shards, 'shard')} along axis {tensor.axis}: choose "
                    "another --num-shards"
                )
            part[tensor.axis] //= self._num_shards
        return part

    def _fill(self, place: meta.MetaTensor, tensor: torch.Tensor) -> None:
        parts = (
            [tensor] * self._num_shards
            if place.axis is None
            else tensor.chunk(self._num_shards, dim=place.axis)
        )
        for path, part in zip(self._paths, parts, strict=True):
            self.put(path, self._offsets[place.name], part)


def write_params(folder: Path, metadata: CheckpointMetadata, kept: Mapping[str, Any]) -> None:
    """Write ``params.json``; keys of the source's, ``kept``, that say nothing else stay.

    Raises:
        InputError: Meta's code has no such rotary embedding or head size.
    """
    model, scaling = metadata.model, metadata.rope_scaling
    if model.family is not LLAMA:
        raise InputError(
            f"--format meta is Meta's own, for Llama models, and this is {model.family.title}: "
            "export to Hugging Face"
        )
    meta_scaling = isinstance(scaling, YarnConfig) and scaling == YarnConfig(scaling.scaling_factor)
    if scaling is not None and not isinstance(scaling, NtkConfig) and not meta_scaling:
        raise InputError(
            f"Meta's code scales rotary frequencies by one formula (ramp 'rotations', original "
            f"8192, beta 1 and 4, no temperature), not as this model: "
            f"{describe(scaling, model.max_position_embeddings)}; export to Hugging Face"
        )
    if model.kv_channels * model.num_attention_heads != model.hidden_size:
        raise InputError(
            f"Meta's code has heads of hidden_size / num_attention_heads ({model.hidden_size} / "
            f"{model.num_attention_heads}), not of {model.kv_channels}: export to Hugging Face"
        )
    factor = scaling.scaling_factor if isinstance(scaling, YarnConfig) else None
    values: dict[str, Any] = {
        **(kept if "multiple_of" in kept else _ffn_params(model)),
        "dim": model.hidden_size,
        "n_layers": model.num_layers,
        "n_heads": model.num_attention_heads,
        "n_kv_heads": model.num_query_groups,
        "vocab_size": model.vocab_size,
        "norm_eps": model.norm_epsilon,
        "rope_theta": effective_rotary_base(scaling, model.kv_channels, model.rotary_base),
        "use_scaled_rope": factor is not None,
    }
    values.pop("rope_scaling_factor", None)
    if meta.needs_factor(model.hidden_size, factor):
        values["rope_scaling_factor"] = factor
    (folder / kind.PARAMS_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _ffn_params(model: ModelConfig) -> dict[str, Any]:
    """Meta's code makes ``ffn = m * ceil(int(multiplier * int(8 dim / 3)) / m)``."""
    plain = int(2 * (4 * model.hidden_size) / 3)
    # m = ffn and a product just below it: the ceiling is 1, whatever the rounding
    multiplier = (model.ffn_hidden_size - 0.5) / plain
    return {"multiple_of": model.ffn_hidden_size, "ffn_dim_multiplier": multiplier}
