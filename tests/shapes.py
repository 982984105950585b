"""Small Llamas, of four query heads and two key heads: their shapes, and random weights."""

import torch

from megatron_ultralong.model.shape import ModelConfig


def llama_shape(
    *, layers: int, hidden: int, ffn: int, vocabulary: int, positions: int
) -> ModelConfig:
    """A Llama's, untied."""
    heads = {"num_attention_heads": 4, "num_query_groups": 2, "kv_channels": hidden // 4}
    return ModelConfig(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        vocab_size=vocabulary,
        norm_epsilon=1e-5,
        rotary_base=10_000.0,
        max_position_embeddings=positions,
        untie_embeddings_and_output_weights=True,
        **heads,
    )


def fill(model: torch.nn.Module, seed: int) -> None:
    """Random weights; those of norms and biases around one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0 if parameter.ndim > 1 else 1.0, 0.2, generator)
