"""A model as one GGUF file, llama.cpp's format: names, the order of q and k, and the writer.

Its header has the metadata and a list of all tensors, and is made by the package ``gguf``; the
tensors follow in the order of the list, each at a multiple of 32 bytes, and are written in place as
they come. What stands in it is what ``convert_hf_to_gguf.py`` of llama.cpp makes of the Hugging
Face folder of the same model, except for the rotary embedding, which is stated as llama.cpp
computes it.

What llama.cpp reads of that: ``rope.freq_base``; ``rope.scaling.type``, ``factor`` and
``original_context_length``; a tensor ``rope_freqs.weight`` that every frequency is divided by; and
``rope.scaling.attn_factor``, which multiplies the temperature 0.1 ln s + 1 that it gives to
``yarn`` of itself, or 1. It has keys for betas and for the temperature itself
(``yarn_beta_fast``, ``yarn_beta_slow``, ``yarn_attn_factor``), its converter writes them, and for
``llama`` it looks at none of them. So what ``yarn`` there would get wrong is stated as divisors.
For ``qwen2`` and ``qwen3`` it reads no divisors either, and such a model is refused.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_ultralong.checkpoint.disk.folder import check_inside
from megatron_ultralong.checkpoint.disk.large_files import TensorWriter
from megatron_ultralong.checkpoint.formats import gguf_values as typed
from megatron_ultralong.checkpoint.formats import megatron, meta, weight_map
from megatron_ultralong.checkpoint.formats.gguf_tokenizer import tokenizer_values
from megatron_ultralong.checkpoint.formats.gguf_values import Value, Values, library
from megatron_ultralong.checkpoint.formats.hugging_face_config import CONFIG_FILE
from megatron_ultralong.checkpoint.formats.kind import GGUF_FILE
from megatron_ultralong.checkpoint.formats.tensor_file import TensorInfo
from megatron_ultralong.model import yarn
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import JsonObject, read_json

DIVISORS = "rope_freqs.weight"
_SCALING = "rope.scaling."
_USUAL_BETAS = (32.0, 1.0)
"""Of llama.cpp, where no flag gives others."""


def rope_values(
    scaling: yarn.RopeScaling, model: ModelConfig
) -> tuple[Values, torch.Tensor | None]:
    """Metadata of a rotary embedding, and the divisors of its frequencies, float32 [D // 2].

    The divisors are None where llama.cpp computes the frequencies from the metadata.

    Raises:
        InputError: they are needed, and it reads none in this architecture.
    """
    base = yarn.effective_rotary_base(scaling, model.kv_channels, model.rotary_base)
    scaled, divisors = _scaling_values(scaling, model)
    architecture = model.family.gguf
    if divisors is not None and architecture != "llama":
        raise InputError(
            f"llama.cpp computes no such rotary embedding for {architecture} "
            f"({yarn.describe(scaling, model.max_position_embeddings)}): it reads {DIVISORS} for "
            "llama alone; train with linear, or with --ramp dimensions --beta-fast 32, or export "
            "to Hugging Face"
        )
    values = {"rope.freq_base": typed.float32(base), **scaled}
    return {f"{architecture}.{name}": value for name, value in values.items()}, divisors


def _scaling_values(
    scaling: yarn.RopeScaling, model: ModelConfig
) -> tuple[Values, torch.Tensor | None]:
    if scaling is None or isinstance(scaling, yarn.NtkConfig):
        return {}, None
    if isinstance(scaling, yarn.LinearConfig):
        factor = typed.float32(scaling.scaling_factor)
        return {_SCALING + "type": typed.string("linear"), _SCALING + "factor": factor}, None
    betas = (scaling.beta_fast, scaling.beta_slow)
    if scaling.ramp == "dimensions" and scaling.truncate and betas == _USUAL_BETAS:
        return _yarn_values(scaling), None
    values: Values = {}
    if scaling.attention_factor != 1.0:
        values[_SCALING + "attn_factor"] = typed.float32(scaling.attention_factor)
    if scaling.ramp == "rotations":
        return values, _llama3_divisors(scaling, model)
    plain = yarn.rope_inv_freq(model.kv_channels, model.rotary_base)
    scaled = yarn.yarn_inv_freq(scaling, model.kv_channels, model.rotary_base)
    return values, torch.from_numpy(plain / scaled).float()


def readers(scaling: yarn.RopeScaling, model: ModelConfig) -> str:
    """Which build of llama.cpp was run with such a file, what it did, and by what it knows.

    ``tools/compare_gguf.py`` runs it, without any flag of the rotary embedding.
    """
    values, divisors = rope_values(scaling, model)
    kind = values.get(f"{model.family.gguf}.{_SCALING}type")
    how = "rope_freqs.weight" if divisors is not None else kind.value if kind else "rope.freq_base"
    return (
        "b11549 was run with such a file and rotated as trained, without any flag of the rotary "
        f"embedding: {how} in the file says how"
    )


def _yarn_values(scaling: yarn.YarnConfig) -> Values:
    usual = yarn.yarn_attention_factor(scaling.scaling_factor)
    values = {
        "type": typed.string("yarn"),
        "factor": typed.float32(scaling.scaling_factor),
        "original_context_length": typed.uint32(scaling.original_max_position_embeddings),
        "yarn_attn_factor": typed.float32(scaling.attention_factor),
        "yarn_beta_fast": typed.float32(scaling.beta_fast),
        "yarn_beta_slow": typed.float32(scaling.beta_slow),
    }
    if scaling.attention_factor != usual:
        values["attn_factor"] = typed.float32(scaling.attention_factor / usual)
    return {_SCALING + name: value for name, value in values.items()}


def _llama3_divisors(scaling: yarn.YarnConfig, model: ModelConfig) -> torch.Tensor:
    """What llama.cpp's converter makes of ``rope_type: llama3``, every product in float32.

    It is up to 1e-6 from the quotient of the frequencies in float64, as transformers' own
    frequencies are; files of one model should not depend on who converted it.
    """
    dimension = model.kv_channels
    exponents = torch.arange(0, dimension, 2, dtype=torch.float32) / dimension
    frequencies = 1.0 / (model.rotary_base**exponents)
    length, factor = scaling.original_max_position_embeddings, scaling.scaling_factor
    slow, fast = scaling.beta_slow, scaling.beta_fast
    wavelengths = 2 * math.pi / frequencies
    share = (length / wavelengths - slow) / (fast - slow)
    mixed = 1 / ((1 - share) / factor + share)
    divisors = torch.where(wavelengths > length / slow, factor, mixed)
    return torch.where(wavelengths < length / fast, 1.0, divisors).float()


_OUTSIDE = {
    weight_map.EMBEDDING: "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    weight_map.LM_HEAD: "output.weight",
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
    "top_k": ("top_k", typed.int32),
    "top_p": ("top_p", typed.float32),
    "min_p": ("min_p", typed.float32),
    "temperature": ("temp", typed.float32),
    "repetition_penalty": ("penalty_repeat", typed.float32),
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
    return meta.in_meta_order(name, tensor, model) if model.family.gguf == "llama" else tensor


def stored_info(info: TensorInfo) -> TensorInfo:
    """Dtype and shape of a tensor as the file has it: llama.cpp wants vectors in float32."""
    return TensorInfo(torch.float32, info.shape) if len(info.shape) == 1 else info


class GgufContents:
    """Everything of a GGUF file but its tensors' bytes: what stands in it, and where."""

    def __init__(self, source: megatron.MegatronCheckpoint, dtype: torch.dtype | None) -> None:
        """Plan the file of ``source`` in ``dtype``; None keeps its own.

        Raises:
            InputError: the package ``gguf`` is not there, or llama.cpp has no such tokenizer.
        """
        weights = weight_map.model_weights(source.model)
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
            "general.architecture": typed.string(self.architecture),
            "general.type": typed.string("model"),
            **_sampling(source.source_folder),
            "general.name": typed.named("source_model", typed.string, source.metadata.source_model),
            "general.size_label": typed.string(library().size_label(size, size, 0, 0)),
            **_shape_values(source.model),
            **rope,
            "general.file_type": typed.uint32(_TYPES[main][1]),
            "general.quantization_version": typed.uint32(library().GGML_QUANT_VERSION),
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
    values = {name: typed.named(name, typed.uint32, n) for name, n in counts.items()}
    values["attention.layer_norm_rms_epsilon"] = typed.float32(model.norm_epsilon)
    return {f"{architecture}.{name}": value for name, value in values.items()}


def _sampling(folder: Path) -> Values:
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    check_inside(path, folder)
    given = read_json(path)
    found: dict[str, Value] = {}
    for key, (name, kind) in _SAMPLING.items():
        value = given.integer(key, None) if kind is typed.int32 else given.number(key, None)
        if value is not None:
            found[f"general.sampling.{name}"] = typed.named(f"{path}: {key}", kind, value)
    return found
