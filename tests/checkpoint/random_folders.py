"""Random model folders: plain ones, odd ones that load, and wrong ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.checkpoint.formats.weight_map import model_weights
from megatron_ultralong.model.shape import ModelConfig
from tests.checkpoint.odd_files import ODD_LAYOUTS, PLAIN_LAYOUTS, write_plain
from tests.checkpoint.odd_folder import Folder, Tensors
from tests.checkpoint.odd_rope import choose_rope
from tests.checkpoint.odd_tensors import NAME_ODDITIES, choose_dtypes, choose_tensors, choose_tied

__all__ = ["Folder", "draw", "write", "write_plain"]

PARTS = ("rope", "keys", "tied", "dtypes", "tensors", "names", "layout", "layout")


def draw(seed: int) -> Folder:
    """A folder of a few thousand parameters, with some of everything below."""
    rng = random.Random(seed)
    heads, head_dim = rng.choice([(2, 4), (4, 8), (4, 4), (6, 8)])
    model = ModelConfig(
        num_layers=rng.choice([1, 2]),
        hidden_size=heads * rng.choice([head_dim, 4, 6]),
        ffn_hidden_size=rng.choice([12, 20]),
        num_attention_heads=heads,
        num_query_groups=rng.choice([1, 2, heads]),
        kv_channels=head_dim,
        vocab_size=rng.choice([17, 32, 40]),
        norm_epsilon=rng.choice([1e-5, 1e-6]),
        rotary_base=10000.0,
        max_position_embeddings=rng.choice([64, 256]),
        untie_embeddings_and_output_weights=rng.random() < 0.5,
    )
    tensors = random_tensors(model, seed)
    wild = frozenset(rng.sample(PARTS, rng.choice([0, 0, 1, 1, 1, 2])))
    folder = Folder(rng, config_of(model), model, tensors, dict(tensors), wild)
    for choose in (choose_rope, choose_keys, choose_tied, choose_dtypes, choose_tensors):
        choose(folder)
    if "names" in wild:
        rng.choice(NAME_ODDITIES)(folder)
    return folder


def random_tensors(model: ModelConfig, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.3
        for weight in model_weights(model)
        for name, shape in zip(weight.names, weight.shapes, strict=True)
    }
    return {n: t.abs() + 0.5 if t.dim() == 1 else t for n, t in tensors.items()}


def config_of(model: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "head_dim": model.kv_channels,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.norm_epsilon,
        "max_position_embeddings": model.max_position_embeddings,
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
    }


def choose_keys(folder: Folder) -> None:
    rng, config, model = folder.rng, folder.config, folder.model
    if model.num_query_groups == model.num_attention_heads and rng.random() < 0.5:
        del config["num_key_value_heads"]
    whole = model.hidden_size == model.num_attention_heads * model.kv_channels
    if whole and rng.random() < 0.5:
        config["head_dim"] = None
    if model.norm_epsilon == 1e-6 and rng.random() < 0.5:
        del config["rms_norm_eps"]
    if model.untie_embeddings_and_output_weights and rng.random() < 0.3:
        del config["tie_word_embeddings"]
    if rng.random() < 0.5:
        config[rng.choice(["dtype", "torch_dtype"])] = rng.choice(["float32", "bfloat16"])
    if "keys" not in folder.wild:
        return
    if rng.random() < 0.5:
        config["model_type"] = "mistral"
        folder.odd("another model", "model_type 'mistral'", "'llama'")
    else:
        config["per_layer_config"] = {"0": {"intermediate_size": 8}}
        folder.odd("layers of their own", "per_layer_config", "null")


def write(folder: Folder, path: Path) -> None:
    """Write a folder in one of the layouts; its oddity is added."""
    path.mkdir()
    folder.rng.choice(ODD_LAYOUTS if "layout" in folder.wild else PLAIN_LAYOUTS)(folder, path)
    values = {key: value for key, value in folder.config.items() if value is not None}
    if folder.rng.random() < 0.2:
        values = dict(folder.config)  # with its nulls
        if values.get("head_dim", 1) is None:
            del values["head_dim"]
    (path / "config.json").write_text(json.dumps(values))
