"""A ``config.json`` without weights: what its rope block is, in words."""

from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.disk.folder import FORMAT_FILE, LATEST_FILE, check_inside
from megatron_ultralong.checkpoint.formats import hugging_face_config
from megatron_ultralong.checkpoint.formats.hugging_face_config import CONFIG_FILE, architectures_of
from megatron_ultralong.checkpoint.formats.rope_verdicts import good_for
from megatron_ultralong.checkpoint.formats.weight_files import has_weights
from megatron_ultralong.config.rope_recipe import rope_recipe
from megatron_ultralong.model.families import ARCHITECTURES, refusal
from megatron_ultralong.model.families.llama import LLAMA
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import JsonObject, read_json

_MODEL_KEYS = {"architectures", "hidden_size", "model_type", "num_attention_heads", "text_config"}
"""Of which every ``config.json`` has some."""


def lone_config(path: Path) -> Path | None:
    """The ``config.json`` that ``path`` is or that it holds without weights; None: a model.

    Raises:
        InputError: it leads out of the folder that was given.
    """
    if path.is_file() and path.suffix == ".json":
        return path
    others = (path / LATEST_FILE, path / FORMAT_FILE)
    if not (path / CONFIG_FILE).is_file() or has_weights(path) or any(o.is_file() for o in others):
        return None
    check_inside(path / CONFIG_FILE, path)
    return path / CONFIG_FILE


def inspect_config(path: Path) -> dict[str, Any]:
    """What a configuration says of its rotary embedding, of whatever architecture it is.

    Raises:
        InputError: it is damaged or none, its rope block is none that is known here, or its numbers
            are those of no model.
    """
    values = read_json(path)
    if not _MODEL_KEYS.intersection(values):
        raise InputError(
            f"{path} is no configuration of a model: it has none of "
            f"{', '.join(sorted(_MODEL_KEYS))}; give the config.json, or the model's folder"
        )
    inner = values.object("text_config", None)  # of models that see and hear too
    config = JsonObject({**values, **inner}, values.where) if inner else values
    architectures = architectures_of(values)
    heads = config.integer("num_attention_heads", 32, minimum=1)
    head_dim = config.integer("head_dim", 0) or config.integer("hidden_size", 4096) // heads
    family = next((ARCHITECTURES[name] for name in architectures if name in ARCHITECTURES), None)
    rope = hugging_face_config.stated_rope(config, head_dim, (family or LLAMA).name)
    why = "" if family else f"{refusal(architectures)}; the rope block is described as a Llama's"
    if family:
        try:
            hugging_face_config.with_defaults(values, family, path)
        except InputError as error:
            why = str(error)
    return {
        "format": "a configuration without weights",
        "path": str(path),
        "architectures": architectures,
        "family": family.title if family else None,
        "conversion": why or None,
        "rope_theta": rope.base,
        "rope_block": next(
            (config[key] for key in ("rope_scaling", "rope_parameters") if config.get(key)), None
        ),
        "rope_recipe": rope_recipe(rope.scaling, rope.positions),
        "good_for": {"no engine": f"was run with such a model: {why}"} if why else good_for(rope),
    }
