"""Shapes of published Llama models, by name."""

from __future__ import annotations

import dataclasses

from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError

_LLAMA_3_1_8B = ModelConfig(
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=14336,
    num_attention_heads=32,
    num_query_groups=8,
    kv_channels=128,
    vocab_size=128256,
    norm_epsilon=1e-5,
    rotary_base=500000.0,
    max_position_embeddings=131072,
    untie_embeddings_and_output_weights=True,
)

MODELS: dict[str, ModelConfig] = {
    "llama3.1-8b": _LLAMA_3_1_8B,
    "llama3.1-70b": dataclasses.replace(
        _LLAMA_3_1_8B,
        num_layers=80,
        hidden_size=8192,
        ffn_hidden_size=28672,
        num_attention_heads=64,
    ),
    "llama3.1-405b": dataclasses.replace(
        _LLAMA_3_1_8B,
        num_layers=126,
        hidden_size=16384,
        ffn_hidden_size=53248,
        num_attention_heads=128,
    ),
    "llama3.2-1b": dataclasses.replace(
        _LLAMA_3_1_8B,
        num_layers=16,
        hidden_size=2048,
        ffn_hidden_size=8192,
        kv_channels=64,
        untie_embeddings_and_output_weights=False,
    ),
    "llama3.2-3b": dataclasses.replace(
        _LLAMA_3_1_8B,
        num_layers=28,
        hidden_size=3072,
        ffn_hidden_size=8192,
        num_attention_heads=24,
        untie_embeddings_and_output_weights=False,
    ),
    "demo": ModelConfig(
        num_layers=3,
        hidden_size=256,
        ffn_hidden_size=640,
        num_attention_heads=4,
        num_query_groups=2,
        kv_channels=32,
        vocab_size=4096,
        norm_epsilon=1e-5,
        rotary_base=10000.0,
        max_position_embeddings=512,
        untie_embeddings_and_output_weights=False,
    ),
}
"""Shapes as in Meta's and Hugging Face's ``config.json``, and of the demo's model."""

_OF_RECIPES = {"llama3.1-8b": "llama3.1-8b", "demo": "demo"}


def model_of_recipe(recipe: str) -> str:
    """Name of the model that a recipe is made for: ``llama3.1-8b-4m -> llama3.1-8b``.

    Raises:
        InputError: the recipe names none.
    """
    for beginning, name in _OF_RECIPES.items():
        if recipe.startswith(beginning):
            return name
    raise InputError(f"recipe {recipe!r} names no model: say --model, one of {', '.join(MODELS)}")


def model_by_name(name: str) -> ModelConfig:
    """The shape of a published model.

    Raises:
        InputError: it is not known.
    """
    if name not in MODELS:
        raise InputError(
            f"--model {name!r} is neither a folder nor a known model ({', '.join(MODELS)}): name "
            "one of these, or a Hugging Face folder or a checkpoint"
        )
    return MODELS[name]
