"""Random rope blocks: what people write, with keys that agree, contradict or are left out."""

from __future__ import annotations

import random
from typing import Any

VALUES: dict[str, list[Any]] = {
    "rope_type": ["default", "linear", "llama3", "yarn", "yarn", "yarn", "dynamic", None],
    "type": ["linear", "llama3", "yarn", "yarn"],
    "factor": [1, 2.0, 16, 128.0, 0.5, None],
    "original_max_position_embeddings": [64, 512, 8192, None],
    "rope_theta": [10000.0, 500000, None],
    "beta_fast": [32, 4.0, None],
    "beta_slow": [1, 2.5, None],
    "attention_factor": [1.0, 1.25, 1, None],
    "mscale": [1.0, 0.707, 0, 0.0],
    "mscale_all_dim": [1.0, 0.5, 0, 0.0],
    "truncate": [True, False, None],
    "finetuned": [True, False],
    "low_freq_factor": [1.0, 1],
    "high_freq_factor": [4.0, 4],
    "partial_rotary_factor": [1.0, 0.5],
    "dynamic": [True],
}
USUAL = {
    "llama3": ["factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"],
    "yarn": ["factor", "original_max_position_embeddings"],
    "linear": ["factor"],
}


def random_config(rng: random.Random) -> dict[str, Any]:
    """A configuration whose rope block has what its type needs, mostly, and a few other keys."""
    config: dict[str, Any] = {"hidden_size": 2048, "num_attention_heads": 32, "head_dim": 64}
    config["max_position_embeddings"] = rng.choice([512, 8192])
    for key in rng.choice([["rope_scaling"], ["rope_parameters"], ["rope_scaling"] * 2]):
        kind = rng.choice(VALUES["rope_type"])
        block = {rng.choice(["rope_type", "rope_type", "type"]): kind}
        keys = [name for name in USUAL.get(kind, []) if rng.random() < 0.9]
        keys += rng.sample(sorted(VALUES), rng.choice([0, 0, 1, 2, 3]))
        block |= {name: rng.choice(VALUES[name]) for name in keys if name not in block}
        config[key] = block
    if rng.random() < 0.2:
        config["rope_theta"] = rng.choice([10000.0, 500000.0])
    if rng.random() < 0.1:
        config["original_max_position_embeddings"] = rng.choice([512, 8192])
    return config
