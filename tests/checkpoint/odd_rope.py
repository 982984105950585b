"""Rope blocks old and new, as people have them."""

from __future__ import annotations

import random
from typing import Any

from tests.checkpoint.odd_folder import Folder


def choose_rope(folder: Folder) -> None:
    rng = folder.rng
    block = rng.choice([_default, _linear, _llama3, _yarn, _yarn])(rng)
    theta = rng.choice([10000.0, 500000.0])
    if "rope" in folder.wild:
        rng.choice(ROPE_ODDITIES)(folder, block)
    key = rng.choice(["rope_scaling", "rope_parameters"])
    if block == {"rope_type": "default"} and rng.random() < 0.3:
        block = {}
    elif rng.random() < 0.3 and "type" not in block:
        block["type"] = block.pop("rope_type")
    if rng.random() < 0.5 or not block:
        folder.config.setdefault("rope_theta", theta)
    else:
        block.setdefault("rope_theta", theta)
    if block or rng.random() < 0.5:
        folder.config[key] = block or None
    if "rope" in folder.wild and rng.random() < 0.2 and block:
        _second_block(folder, key, block, theta)


def _default(rng: random.Random) -> dict[str, Any]:
    return {"rope_type": "default"}


def _linear(rng: random.Random) -> dict[str, Any]:
    return {"rope_type": "linear", "factor": rng.choice([2, 4.0, 1.5])}


def _llama3(rng: random.Random) -> dict[str, Any]:
    block = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if rng.random() < 0.8:
        block["original_max_position_embeddings"] = rng.choice([16, 32])
    return block


def _yarn(rng: random.Random) -> dict[str, Any]:
    block: dict[str, Any] = {"rope_type": "yarn", "factor": rng.choice([4.0, 16.0])}
    if rng.random() < 0.8:
        block["original_max_position_embeddings"] = rng.choice([16, 32])
    if rng.random() < 0.4:
        block |= {"beta_fast": rng.choice([4, 32.0]), "beta_slow": rng.choice([1, 2.0])}
    if rng.random() < 0.4:
        block["attention_factor"] = rng.choice([1.0, 1.25, None])
    if rng.random() < 0.2:
        block["truncate"] = rng.choice([True, False])
    return block


def _second_block(folder: Folder, key: str, block: dict[str, Any], theta: float) -> None:
    other = "rope_parameters" if key == "rope_scaling" else "rope_scaling"
    second = dict(block)
    if folder.rng.random() < 0.5:
        folder.odd("two blocks that agree")
    else:
        second = folder.rng.choice(
            [
                {**block, "rope_theta": theta * 2},
                {"rope_type": "linear", "factor": 3.0, "rope_theta": theta},
            ]
        )
        folder.odd("two blocks that disagree", "rope_scaling|two|rope_theta", "disagree|rope_theta")
    folder.config[other] = second


def _outer_length(folder: Folder, block: dict[str, Any]) -> None:
    if block["rope_type"] in ("yarn", "llama3"):
        inside = block.get("original_max_position_embeddings")
        folder.config["original_max_position_embeddings"] = outside = folder.rng.choice([16, 32])
        if inside in (None, outside):
            folder.odd("length beside the block")
        else:
            folder.odd("two lengths", f"is {outside} beside", f"{inside} in it")


def _two_scales(folder: Folder, block: dict[str, Any]) -> None:
    block |= {"mscale": 1.0, "mscale_all_dim": 0.5}
    if block["rope_type"] != "yarn":
        folder.odd("mscale elsewhere", "mscale", "unknown keys")
    elif block.get("attention_factor"):
        folder.odd("mscale beside a factor", "attention_factor is", "mscale 1.0")
    else:
        folder.odd("mscale and mscale_all_dim")


def _one_scale(folder: Folder, block: dict[str, Any]) -> None:
    block[folder.rng.choice(["mscale", "mscale_all_dim"])] = 1.0
    folder.odd("one mscale", "mscale", "unknown keys|attention_factor")


def _finetuned(folder: Folder, block: dict[str, Any]) -> None:
    block["finetuned"] = True
    folder.odd("finetuned")


def _whole_heads(folder: Folder, block: dict[str, Any]) -> None:
    block["partial_rotary_factor"] = folder.rng.choice([1.0, 0.5])
    if block["partial_rotary_factor"] == 0.5:
        folder.odd("half heads", "partial_rotary_factor is 0.5", "1.0")


def _half_heads_outside(folder: Folder, block: dict[str, Any]) -> None:
    folder.config["partial_rotary_factor"] = 0.5
    folder.odd("half heads outside", "partial_rotary_factor 0.5", "1.0")


def _two_types(folder: Folder, block: dict[str, Any]) -> None:
    other = "linear" if block["rope_type"] != "linear" else "default"
    block["type"] = other
    folder.odd("two types", f"rope_type is '{block['rope_type']}'", f"type is '{other}'")


def _two_bases(folder: Folder, block: dict[str, Any]) -> None:
    block["rope_theta"], folder.config["rope_theta"] = 77.0, 88.0
    folder.odd("two bases", "rope_theta is 88.0", "77.0 in the rope block")


def _no_factor(folder: Folder, block: dict[str, Any]) -> None:
    if block["rope_type"] == "yarn":
        block["factor"] = None
        block.setdefault("original_max_position_embeddings", 32)
        folder.odd("factor of null")
    elif block["rope_type"] != "default":
        del block["factor"]
        folder.odd("no factor", block["rope_type"], r"missing keys \['factor'\]")


def _unknown_type(folder: Folder, block: dict[str, Any]) -> None:
    block["rope_type"] = folder.rng.choice(["dynamic", "longrope", "proportional", "mrope"])
    block |= {"short_factor": [1.0], "long_factor": [1.0], "factor": 2.0}
    folder.odd("unknown type", f"rope_type '{block['rope_type']}' is not supported", "known: ")


def _unknown_key(folder: Folder, block: dict[str, Any]) -> None:
    key = "low_freq_factor" if block["rope_type"] != "llama3" else "beta_fast"
    block[key] = 2.0
    folder.odd("a key of another type", f"unknown keys.*{key}", block["rope_type"])


ROPE_ODDITIES = (
    *(_outer_length, _two_scales, _one_scale, _finetuned, _whole_heads, _half_heads_outside),
    *(_two_types, _two_bases, _no_factor, _unknown_type, _unknown_key),
)
