"""``config.json`` of a Hugging Face model, and what this project knows of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ultralong.checkpoint.disk.folder import check_inside
from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata
from megatron_ultralong.checkpoint.formats import rope_block
from megatron_ultralong.checkpoint.formats.rope_readers import Rope
from megatron_ultralong.model import yarn
from megatron_ultralong.model.families import ARCHITECTURES, FAMILIES, refusal
from megatron_ultralong.model.families.family import Family
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.aside import write_aside
from megatron_ultralong.program.errors import InputError, shown
from megatron_ultralong.program.json_file import JsonObject, read_json

if TYPE_CHECKING:  # reading a shape needs no torch
    import torch

CONFIG_FILE = "config.json"
SHAPE_KEYS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "norm_epsilon",
    "max_position_embeddings": "max_position_embeddings",
}
"""Megatron's words for keys of ``config.json``."""
_FIXED = {
    "hidden_act": "silu",
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "per_layer_config": None,
    "text_config": None,
    "is_causal": True,
    "use_bidirectional_attention": False,
    "kv_sharing_modes": None,
    "num_kv_shared_layers": None,
    "layer_types": ["full_attention"],
}
"""Keys that may be absent in every family; any other value is another model. Of every key that
transformers reads in a model tests/checkpoint/test_keys_of_transformers.py wants a decision."""
_EMPTY_IS_NONE = (
    *("quantization_config", "per_layer_config", "kv_sharing_modes", "num_kv_shared_layers"),
    "dual_chunk_attention_config",
)
"""Keys whose empty value, or one that names nothing, is as none."""
_SAME = {"hidden_act": ("swish",)}
"""Other names of the same."""
_ABSENT = ", which transformers takes where the key is absent,"

_REPLACED = (
    *("rope_parameters", "dtype", "original_max_position_embeddings"),
    "transformers_weights",  # a file of the source
    "layer_types",  # all of one type
)
"""Keys of a source that an export states in another way, or must not."""

_CODE_BEGINNINGS = (
    "auto_map",
    "custom_",
    "trust_remote_code",
    "quantization",
    "compression_config",
    "attn_implementation",
    "kernel",
    "use_kernels",
    "compile_config",
    "fusion_config",
    "adapter",
)


def read_config(folder: Path) -> JsonObject:
    """``config.json`` of ``folder``, of a family that can be converted, its own defaults filled in.

    Raises:
        InputError: no such file, damaged, or of a model that is none of a known family.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{folder} has no {CONFIG_FILE}: it is not a Hugging Face model folder")
    check_inside(path, folder)
    values = read_json(path)
    return with_defaults(values, family_of(values))


def with_defaults(stated: JsonObject, family: Family) -> JsonObject:
    """A configuration with its family's own defaults filled in.

    Raises:
        InputError: a key makes it another model than those of the family.
    """
    where = stated.where
    values = JsonObject({**family.defaults, **stated}, where)
    for key, expected in {**_FIXED, **family.fixed, **family.stated}.items():
        value = values.get(key, expected)
        many = isinstance(expected, list) and isinstance(value, list)
        is_known = all(one in expected for one in value) if many else value in (expected, None)
        if not is_known and not _is_idle(key, value, stated):
            wanted = "null" if expected is None else repr(expected)
            absent = "" if key in stated else _ABSENT
            raise InputError(
                f"{where}: {key} {shown(value)}{absent} is not supported: "
                f"it must be {wanted}, as in the {family.title} models that are known here"
            )
    if values.get("model_type", family.name) not in (family.name, None):
        raise InputError(
            f"{where}: model_type {shown(values['model_type'])} is not that of its architecture, "
            f"{family.architecture}, which is {family.name!r}: correct one"
        )
    return values


def _is_idle(key: str, value: Any, stated: JsonObject) -> bool:
    """Whether a value that is not the known one changes nothing, in every release.

    Qwen's layers have a window from ``max_window_layers`` on, where ``sliding_window`` is set.
    """
    if key in _EMPTY_IS_NONE:
        names_none = key == "quantization_config" and isinstance(value, dict)
        return not (any(value.values()) if names_none else value)
    if key == "use_sliding_window":
        layers, first = (stated.get(k) for k in ("num_hidden_layers", "max_window_layers"))
        has_none = "sliding_window" in stated and stated["sliding_window"] is None
        return value is True and (
            has_none or (type(layers) is type(first) is int and first >= layers)
        )
    return value in _SAME.get(key, ())


def family_of(values: JsonObject) -> Family:
    """The family that a ``config.json`` names.

    Raises:
        InputError: it is none of those that are known; with what is missing here for it.
    """
    architectures = architectures_of(values)
    for name in architectures:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    raise InputError(f"{values.where}: {refusal(architectures)}")


def architectures_of(values: JsonObject) -> list[str]:
    """What a ``config.json`` names; where it names none, its ``model_type`` says it.

    transformers writes none for a configuration that is saved alone, and reads ``model_type``.
    """
    named: list[str] = values.strings("architectures", [])
    its = (f.architecture for f in FAMILIES.values() if f.name == values.get("model_type"))
    return named or [*its]


def model_config(config: JsonObject) -> ModelConfig:
    """The model's shape; absent keys have the defaults of transformers.

    Raises:
        InputError: a key is missing, or the sizes do not fit each other.
    """
    family = family_of(config)
    hidden = config.integer("hidden_size", minimum=1)
    heads = config.integer("num_attention_heads", minimum=1)
    model = ModelConfig(
        num_layers=config.integer("num_hidden_layers"),
        hidden_size=hidden,
        ffn_hidden_size=config.integer("intermediate_size"),
        num_attention_heads=heads,
        num_query_groups=config.integer("num_key_value_heads", 0) or heads,
        kv_channels=config.integer("head_dim", 0) or hidden // heads,
        vocab_size=config.integer("vocab_size"),
        norm_epsilon=config.number("rms_norm_eps", 1e-6),
        rotary_base=rope_block.rotary_base(config),
        max_position_embeddings=rope_block.max_positions(
            config, extended=family.counts_positions_by_yarn
        ),
        untie_embeddings_and_output_weights=not config.boolean("tie_word_embeddings", False),
        model_type=family.name,
    )
    model.check(config.where)
    return model


def without_code(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` of a JSON file of a model, without the keys that choose code in its readers.

    ``auto_map`` names Python files, ``attn_implementation`` kernels to download, and so on. An
    exported model is a plain one with a plain tokenizer, whatever its source asked for.
    """
    return {
        key: without_code(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if not _chooses_code(key)
    }


def _chooses_code(key: str) -> bool:
    return (
        key.lstrip("_").startswith(_CODE_BEGINNINGS)
        or key.endswith("_implementation")
        or "_implementation_" in key
    )


def export_config(
    source: Mapping[str, Any], metadata: CheckpointMetadata, dtype: torch.dtype
) -> dict[str, Any]:
    """``config.json`` of an exported model: the source's, with the rope block of the training.

    The block is written as ``rope_scaling`` and ``rope_theta``: transformers 4.43 to 5.x and vLLM
    all read this form. Every other key of the source is kept, except for those that choose code.

    Raises:
        InputError: no rope block can express the training's rotary embedding.
    """
    model = metadata.model
    fixed = {**_FIXED, **model.family.fixed}  # null or 0 there is refused by transformers 5
    gone = {*_REPLACED, *(key for key, value in fixed.items() if value is None)}
    kept = {
        key: fixed.get(key, value) for key, value in without_code(source).items() if key not in gone
    }
    base = yarn.effective_rotary_base(metadata.rope_scaling, model.kv_channels, model.rotary_base)
    return {
        **kept,
        "architectures": [model.family.architecture],
        "model_type": model.family.name,
        **model.family.stated,
        **{key: getattr(model, name) for key, name in SHAPE_KEYS.items()},
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        "rope_theta": base,
        "rope_scaling": rope_block.export_block(metadata.rope_scaling),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def write_config(folder: Path, values: Mapping[str, Any]) -> None:
    """Write ``config.json`` into ``folder``, which may be new."""
    folder.mkdir(parents=True, exist_ok=True)
    write_aside(folder / CONFIG_FILE, json.dumps(values, indent=2) + "\n")


def stated_rope(config: JsonObject, head_dim: int, family: str) -> Rope:
    """The rotary embedding that a ``config.json`` asks for, and the block that states it.

    Raises:
        InputError: it is none that is known here, or its numbers are those of no model.
    """
    scaling = rope_block.rope_scaling(config)
    block = rope_block.stated_block(config)
    positions, base = rope_block.max_positions(config), rope_block.rotary_base(config)
    in_parameters = rope_block.is_in_parameters(config)
    try:
        return Rope(scaling, block, positions, head_dim, base, family, in_parameters)
    except InputError as error:
        raise InputError(f"{config.where}: {error}") from error


def exported_rope(metadata: CheckpointMetadata) -> Rope:
    """The rotary embedding of a checkpoint, and the block that its export states it with."""
    model = metadata.model
    return Rope(
        metadata.rope_scaling,
        rope_block.export_block(metadata.rope_scaling),
        model.max_position_embeddings,
        model.kv_channels,
        model.rotary_base,
        model.family.name,
    )


def tokenizer_sha256(folder: Path) -> str | None:
    """SHA-256 of ``tokenizer.json`` in ``folder``, in hexadecimal; None without that file."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()
