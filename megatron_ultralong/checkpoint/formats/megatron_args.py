"""The ``args`` that Megatron-LM looks for in a checkpoint."""

from __future__ import annotations

import argparse

from megatron_ultralong.model.shape import ModelConfig


def megatron_args(model: ModelConfig) -> argparse.Namespace:
    """The shape of a model in the words of Megatron-LM's command line.

    Megatron-LM reads the parallel sizes without asking whether they are there, and takes the
    model's shape over under ``--use-checkpoint-args``.
    """
    return argparse.Namespace(
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        context_parallel_size=1,
        data_parallel_size=1,
        world_size=1,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        group_query_attention=model.num_query_groups != model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        max_position_embeddings=model.max_position_embeddings,
        padded_vocab_size=model.vocab_size,
        position_embedding_type="rope",
        rotary_base=model.rotary_base,
        rotary_percent=1.0,
        normalization="RMSNorm",
        norm_epsilon=model.norm_epsilon,
        swiglu=True,
        add_bias_linear=False,
        add_qkv_bias=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        untie_embeddings_and_output_weights=model.untie_embeddings_and_output_weights,
    )
