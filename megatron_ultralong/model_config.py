"""Shape of a model."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama model, in Megatron-LM's words; read from a checkpoint, never typed."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    """Key and value heads."""
    kv_channels: int
    """Size of one head."""
    vocab_size: int
    """Rows of the embedding, not padded."""
    norm_epsilon: float
    rotary_base: float
    max_position_embeddings: int
    """Positions that the weights were trained for."""
    untie_embeddings_and_output_weights: bool
