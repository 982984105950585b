"""A model as one GGUF file, llama.cpp's format: names, the order of q and k, and the writer.

Its header has the metadata and a list of all tensors, and is made by the package ``gguf``; the
tensors follow in the order of the list, each at a multiple of 32 bytes, and are written in place as
they come. What stands in it is what ``convert_hf_to_gguf.py`` of llama.cpp makes of the Hugging
Face folder of the same model, except for the rotary embedding
(:mod:`megatron_ultralong.checkpoint.formats.gguf_rope`).
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_ultralong.checkpoint.disk.folder import check_inside
from megatron_ultralong.checkpoint.disk.large_files import TensorWriter
from megatron_ultralong.checkpoint.formats.gguf_rope import DIVISORS, rope_values
from megatron_ultralong.checkpoint.formats.gguf_tokenizer import tokenizer_values
from megatron_ultralong.checkpoint.formats.gguf_values import (
    Value,
    Values,
    float32,
    int32,
    library,
    named,
    string,
    uint32,
)
from megatron_ultralong.checkpoint.formats.hugging_face_config import CONFIG_FILE
from megatron_ultralong.checkpoint.formats.kind import GGUF_FILE
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.meta import in_meta_order
from megatron_ultralong.checkpoint.formats.tensor_file import TensorInfo
from megatron_ultralong.checkpoint.formats.weight_map import EMBEDDING, LM_HEAD, model_weights
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.json_file import JsonObject, read_json

_OUTSIDE = {
    EMBEDDING: "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    LM_HEAD: "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TYPES = {torch.float32: ("F32", 0), torch.float16: ("F16", 1), torch.bfloat16: ("BF16", 32)}
"""GGUF's name of a dtype, and the number of a file whose matrices have it."""
_SAMPLING: dict[str, tuple[str, Callable[[Any], Value]]] = {
    "top_k": ("top_k", int32),
    "top_p": ("top_p", float32),
    "min_p": ("min_p", float32),
    "temperature": ("temp", float32),
    "repetition_penalty": ("penalty_repeat", float32),
}
"""Keys of ``generation_config.json`` that llama.cpp samples by, their names there and types."""


def gguf_name(name: str) -> str:
    """GGUF's name of a Hugging Face tensor.

    ``model.layers.3.self_attn.q_proj.weight`` is ``blk.3.attn_q.weight``.
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    module, _, kind = name.removeprefix("model.layers.").rpartition(".")
    layer, _, part = module.partition(".")
    return f"blk.{layer}.{_LAYER[part]}.{kind}"


def stored(name: str, tensor: torch.Tensor, model: ModelConfig) -> torch.Tensor:
    """A Hugging Face tensor as the file has it: as in Meta's, where GGUF says ``llama``."""
    return in_meta_order(name, tensor, model) if model.family.gguf == "llama" else tensor


def stored_info(info: TensorInfo) -> TensorInfo:
    """Dtype and shape of a tensor as the file has it: llama.cpp wants vectors in float32."""
    return TensorInfo(torch.float32, info.shape) if len(info.shape) == 1 else info


class GgufContents:
    """Everything of a GGUF file but its tensors' bytes: what stands in it, and where."""

    def __init__(self, source: MegatronCheckpoint, dtype: torch.dtype | None) -> None:
        """Plan the file of ``source`` in ``dtype``; None keeps its own.

        Raises:
            InputError: the package ``gguf`` is not there, or llama.cpp has no such tokenizer.
        """
        weights = model_weights(source.model)
        self.architecture = source.model.family.gguf
        self.divisors: torch.Tensor | None
        rope, self.divisors = rope_values(source.rope_scaling, source.model)
        main = dtype or source.dtype(weights[0])
        self.tensors: dict[str, TensorInfo] = {}
        """By their names in the file, in its order."""
        if self.divisors is not None:
            self.tensors[DIVISORS] = TensorInfo(torch.float32, tuple(self.divisors.shape))
        for weight in weights:
            for name, shape in zip(weight.names, weight.shapes, strict=True):
                info = stored_info(TensorInfo(dtype or source.dtype(weight), shape))
                self.tensors[gguf_name(name)] = info
        size = sum(math.prod(info.shape) for info in self.tensors.values())
        path = source.source_folder / CONFIG_FILE
        check_inside(path, source.source_folder)
        config = read_json(path) if path.is_file() else JsonObject({}, str(path))
        self.values: Values = {
            "general.architecture": string(self.architecture),
            "general.type": string("model"),
            **_sampling(source.source_folder),
            "general.name": named("source_model", string, source.metadata.source_model),
            "general.size_label": string(library().size_label(size, size, 0, 0)),
            **_shape_values(source.model),
            **rope,
            "general.file_type": uint32(_TYPES[main][1]),
            "general.quantization_version": uint32(library().GGML_QUANT_VERSION),
            **tokenizer_values(source.source_folder, source.model.vocab_size, config),
        }

    def header(self, aside: Path) -> bytes:
        """The file up to its first tensor; ``aside`` is where the package writes it."""
        gguf = library()
        writer = gguf.GGUFWriter(None, self.architecture)
        for key, (kind, value) in self.values.items():
            if key != "general.architecture":  # the writer's own
                writer.add_key_value(key, value, gguf.GGUFValueType[kind])
        for name, info in self.tensors.items():
            raw = gguf.GGMLQuantizationType[_TYPES[info.dtype][0]]
            writer.add_tensor_info(name, info.shape, np.dtype("V1"), info.num_bytes, raw)
        try:
            writer.write_header_to_file(path=aside)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            writer.close()
            data = aside.read_bytes()
        finally:
            aside.unlink(missing_ok=True)
        return data + bytes(-len(data) % gguf.GGUF_DEFAULT_ALIGNMENT)

    def offsets(self, header: bytes) -> dict[str, int]:
        """Where every tensor begins in the file, by its name in it."""
        alignment = library().GGUF_DEFAULT_ALIGNMENT
        offset, found = len(header), {}
        for name, info in self.tensors.items():
            found[name] = offset
            offset += info.num_bytes + -info.num_bytes % alignment
        return found

    def num_bytes(self, header: bytes) -> int:
        """Of the file, without what the last tensor is padded with."""
        last, info = list(self.tensors.items())[-1]
        return self.offsets(header)[last] + info.num_bytes


class GgufWriter(TensorWriter):
    """Writes tensors, in any order, to their places in the file."""

    def __init__(self, folder: Path, contents: GgufContents, model: ModelConfig) -> None:
        """Lay the file out; what an earlier process wrote there stays."""
        super().__init__()
        self._model = model
        header = contents.header(folder / f".{GGUF_FILE}.header")
        self._offsets = contents.offsets(header)
        self._path = folder / GGUF_FILE
        self._path.touch()
        with self._path.open("r+b") as file:
            file.write(header)
            # readers want the last tensor padded too
            end = contents.num_bytes(header)
            file.truncate(end + -end % library().GGUF_DEFAULT_ALIGNMENT)
        if contents.divisors is not None:
            self.put(self._path, self._offsets[DIVISORS], contents.divisors)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Fill Hugging Face tensor ``name`` in."""
        self.put(self._path, self._offsets[gguf_name(name)], stored(name, tensor, self._model))


def _shape_values(model: ModelConfig) -> Values:
    counts = {
        "block_count": model.num_layers,
        "context_length": model.max_position_embeddings,
        "embedding_length": model.hidden_size,
        "feed_forward_length": model.ffn_hidden_size,
        "attention.head_count": model.num_attention_heads,
        "attention.head_count_kv": model.num_query_groups,
        "attention.key_length": model.kv_channels,
        "attention.value_length": model.kv_channels,
    }
    architecture = model.family.gguf
    if architecture == "llama":  # llama.cpp takes the same for the others, whose files say neither
        counts |= {"vocab_size": model.vocab_size, "rope.dimension_count": model.kv_channels}
    return {
        **{f"{architecture}.{name}": named(name, uint32, n) for name, n in counts.items()},
        f"{architecture}.attention.layer_norm_rms_epsilon": float32(model.norm_epsilon),
    }


def _sampling(folder: Path) -> Values:
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    check_inside(path, folder)
    given = read_json(path)
    found: dict[str, Value] = {}
    for key, (name, kind) in _SAMPLING.items():
        value = given.integer(key, None) if kind is int32 else given.number(key, None)
        if value is not None:
            found[f"general.sampling.{name}"] = named(f"{path}: {key}", kind, value)
    return found
