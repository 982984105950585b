"""The rope block of a Hugging Face ``config.json``, read as transformers 5 reads it.

It stands under ``rope_scaling`` (to 4.x) or ``rope_parameters`` (5.x), with or without
``rope_theta``. Where two keys say two things, transformers takes one without a word; here they are
refused, as are keys whose meaning differs from program to program.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from megatron_ultralong.model import yarn
from megatron_ultralong.model.shape import MOST_POSITIONS
from megatron_ultralong.program.errors import InputError, shown
from megatron_ultralong.program.json_file import JsonObject

_DEFAULT_BASE: Final = 10000.0
_DEFAULT_POSITIONS: Final = 2048
"""Of transformers' LlamaConfig."""
_LENGTH: Final = "original_max_position_embeddings"
_OLD, _NEW = "rope_scaling", "rope_parameters"
_NOT_NULL = ("rope_type", "type", "rope_theta", _LENGTH)
_ROUNDING = 1e-6
"""Relative: a temperature that was computed in float32 and written down."""


def rotary_base(config: JsonObject) -> float:
    """What rotary frequencies are powers of.

    Raises:
        InputError: two keys state two bases, or other figures of the block differ.
    """
    return float(_block(config)["rope_theta"])


def max_positions(config: JsonObject, *, extended: bool = False) -> int:
    """Positions that the model was made for.

    ``extended``: a YaRN block may extend ``max_position_embeddings``: Qwen's own configs keep the
    positions of the raw model there.

    Raises:
        InputError: no model has as many.
    """
    key = "max_position_embeddings"
    positions = int(config.integer(key, _DEFAULT_POSITIONS, minimum=1, maximum=MOST_POSITIONS))
    scaling = rope_scaling(config) if extended else None
    if isinstance(scaling, yarn.YarnConfig) and scaling.ramp == "dimensions":
        original = scaling.original_max_position_embeddings
        return max(positions, math.floor(scaling.scaling_factor * original))
    return positions


def rope_scaling(config: JsonObject) -> yarn.RopeScaling:
    """The rotary scaling that a ``config.json`` asks for.

    Raises:
        InputError: a rope type or key that is not known here, or keys that disagree.
    """
    block, where = _block(config), config.where
    del block["rope_theta"]
    _check_whole_heads(block, where)
    # tells whether such a model was trained with its scaling; no frequency depends on it
    JsonObject(block, where).boolean("finetuned", None)
    block.pop("finetuned", None)
    if block["rope_type"] in ("llama3", "yarn"):
        _fill_length(block, config)
    if block["rope_type"] == "yarn":
        _fill_factor(block, config)
        _fill_attention_factor(block, where)
    try:
        return yarn.from_hf_rope_scaling(block)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def is_in_parameters(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` says in ``rope_parameters`` alone what block or base it has."""
    its = config.get("rope_parameters") or {}
    has_block = its.get("rope_type", its.get("type", "default")) != "default"
    in_words_of_4 = config.get("rope_scaling") if has_block else "rope_theta" in config
    return bool(its) and not in_words_of_4


def stated_block(config: JsonObject) -> dict[str, Any] | None:
    """The block of a ``config.json`` in the words of transformers 5, what it left out filled in."""
    block = _block(config)
    del block["rope_theta"]
    if block["rope_type"] in ("llama3", "yarn"):
        _fill_length(block, config)
        _fill_factor(block, config)
    stated = {key: value for key, value in block.items() if value is not None}
    return None if stated["rope_type"] == "default" else stated


def export_block(scaling: yarn.RopeScaling) -> dict[str, Any] | None:
    """The ``rope_scaling`` of an export: that of :func:`hf_rope_scaling`, said twice where it must.

    mlx-lm and SGLang read no ``attention_factor`` but ``(0.1 mscale ln s + 1) / (0.1
    mscale_all_dim ln s + 1)``. ``mscale_all_dim`` of 0 keeps transformers and vLLM from looking at
    either, and another temperature than YaRN's own is the only one that has to be said to all.

    Raises:
        InputError: no block can express it.
    """
    block = yarn.hf_rope_scaling(scaling)
    if not isinstance(scaling, yarn.YarnConfig) or scaling.ramp == "rotations":
        return block
    usual = yarn.yarn_attention_factor(scaling.scaling_factor)
    if block is None or usual == 1.0 or scaling.attention_factor == usual:
        return block
    mscale = (scaling.attention_factor - 1.0) / (usual - 1.0)
    return {**block, "mscale": mscale, "mscale_all_dim": 0.0}


def _block(config: JsonObject) -> dict[str, Any]:
    """The block in the words of 5.x, with ``rope_type`` and ``rope_theta``."""
    blocks = {
        key: _in_new_words(block, config)
        for key in (_OLD, _NEW)
        if (block := config.object(key, None))
    }
    stated = [
        {key: value for key, value in sorted(block.items()) if value is not None}
        for block in blocks.values()
    ]
    if len(stated) == 2 and stated[0] != stated[1]:
        same = {key for key in stated[0] if stated[0][key] == stated[1].get(key)}
        old, new = ({key: block[key] for key in block if key not in same} for block in stated)
        raise InputError(
            f"{config.where}: {_OLD} and {_NEW} disagree: {shown(old)} and {shown(new)}; "
            "transformers 5 reads the first alone: remove the one that the model was not trained "
            "with"
        )
    return next(iter(blocks.values()), None) or _in_new_words(JsonObject({}, config.where), config)


def _in_new_words(block: JsonObject, config: JsonObject) -> dict[str, Any]:
    _check_values(block, config)
    empty = [(block.where, key) for key in _NOT_NULL if key in block and block[key] is None]
    if "rope_theta" not in block and config.get("rope_theta", 0) is None:
        empty.append((config.where, "rope_theta"))
    for where, key in empty:
        raise InputError(
            f"{where}: {key} is null, and transformers runs no such model: state it, or "
            "remove the key"
        )
    names = {block.string(key, None) for key in ("rope_type", "type")} - {None}
    if len(names) > 1:
        raise InputError(
            f"{block.where}: rope_type is {shown(block['rope_type'])} and type is "
            f"{shown(block['type'])}: remove the one that the model was not trained with"
        )
    bases = {part.number("rope_theta", None) for part in (block, config)} - {None}
    if len(bases) > 1:
        raise InputError(
            f"{config.where}: rope_theta is {config['rope_theta']} there, and "
            f"{block['rope_theta']} in the rope block, which transformers 5 reads: remove the one "
            "that the model was not trained with"
        )
    rest = {key: block[key] for key in block if key not in ("rope_type", "type", "rope_theta")}
    if "truncate" in rest:  # null is no true
        rest["truncate"] = bool(rest["truncate"])
    return {
        "rope_type": next(iter(names), "default"),
        "rope_theta": next(iter(bases), _DEFAULT_BASE),
        **rest,
    }


def _check_values(block: JsonObject, config: JsonObject) -> None:
    """Every value has the type and the range that it can have."""
    block.number("factor", None, minimum=1, maximum=1e9)
    for key in ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
        block.number(key, None, above=0, maximum=1e9)
    block.number("attention_factor", None, above=0, maximum=1e6)
    for key in ("mscale", "mscale_all_dim"):
        block.number(key, None, minimum=-1e6, maximum=1e6)
    block.number("partial_rotary_factor", None)
    block.boolean("truncate", None)
    block.integer(_LENGTH, None, minimum=1, maximum=2**40)
    config.integer(_LENGTH, None, minimum=1, maximum=2**40)


def _check_whole_heads(block: dict[str, Any], where: str) -> None:
    factor = block.pop("partial_rotary_factor", None)
    if factor not in (1.0, None):
        raise InputError(
            f"{where}: partial_rotary_factor is {factor}, and whole heads are rotated here (1.0): "
            "transformers 5 ignores the key in a Llama that is not scaled, and does not run one "
            "that is; remove it if the model was trained as such a Llama"
        )


def _fill_length(block: dict[str, Any], config: JsonObject) -> None:
    outside = config.integer(_LENGTH, None)
    inside = block.get(_LENGTH)
    if outside is not None and inside not in (None, outside):
        raise InputError(
            f"{config.where}: {_LENGTH} is {outside} next to the rope block and {inside} in it: "
            "remove one"
        )
    block[_LENGTH] = outside or inside or max_positions(config)


def _fill_factor(block: dict[str, Any], config: JsonObject) -> None:
    """A factor of null is what the positions are of the original ones; one must be named."""
    if "factor" in block and block["factor"] is None:
        factor = max_positions(config) / block[_LENGTH]
        if factor < 1:
            raise InputError(
                f"{config.where}: factor is null, and max_position_embeddings "
                f"({max_positions(config)}) is below {_LENGTH} ({block[_LENGTH]}): state the factor"
            )
        block["factor"] = factor


def _fill_attention_factor(block: dict[str, Any], where: str) -> None:
    """``mscale`` and ``mscale_all_dim`` imply one: ``(0.1 m ln s + 1) / (0.1 n ln s + 1)``.

    transformers looks at them where there is no ``attention_factor``, and then at both or none:
    beside one they have to agree with it.
    """
    scales = {key: block.pop(key, None) for key in ("mscale", "mscale_all_dim")}
    present = {key: value or 0.0 for key, value in scales.items() if value is not None}
    given = block.get("attention_factor")
    if not any(present.values()) and (given is None or len(present) < 2):
        return
    if len(present) < 2 or (given is None and not all(present.values())):
        key = next(key for key, value in present.items() if value)
        raise InputError(
            f"{where}: {key} is {present[key]} in the rope block, without the other of "
            f"{' and '.join(scales)}: transformers looks at both or none, other programs at one; "
            "state attention_factor in its place"
        )
    mscale, mscale_all_dim = present.values()
    implied = yarn.mscale_attention_factor(block.get("factor") or 1.0, mscale, mscale_all_dim)
    if given is not None and abs(given - implied) > _ROUNDING * given:
        raise InputError(
            f"{where}: attention_factor is {given}, and mscale {mscale} and mscale_all_dim "
            f"{mscale_all_dim} make it {implied:.6g}: transformers reads the first; remove the "
            "others, or it"
        )
    block["attention_factor"] = given or implied
