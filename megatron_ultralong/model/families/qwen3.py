"""Qwen3, dense: Llama's layer with norms of queries and keys, in heads of 128 at any width."""

import functools

from megatron_ultralong.model.families.family import (
    QK_NORMS,
    TIED,
    Family,
    chatml,
    layer_with,
    shape,
)

_qwen = functools.partial(
    shape,
    kv_channels=128,
    vocab_size=151936,
    norm_epsilon=1e-6,
    rotary_base=1000000.0,
    max_position_embeddings=40960,
)

QWEN3 = Family(
    name="qwen3",
    title="Qwen3 (dense)",
    architecture="Qwen3ForCausalLM",
    models={
        "qwen3-0.6b": _qwen(28, 1024, 3072, 16, **TIED),
        "qwen3-1.7b": _qwen(28, 2048, 6144, 16, **TIED),
        "qwen3-4b": _qwen(36, 2560, 9728, 32, **TIED),
        "qwen3-8b": _qwen(36, 4096, 12288, 32),
        "qwen3-14b": _qwen(40, 5120, 17408, 40),
        "qwen3-32b": _qwen(64, 5120, 25600, 64),
    },
    layer=layer_with(
        **{QK_NORMS[0]: ("self_attn.q_norm.weight",), QK_NORMS[1]: ("self_attn.k_norm.weight",)}
    ),
    defaults={"head_dim": 128, "num_key_value_heads": 32, "max_position_embeddings": 32768},
    stated={"use_sliding_window": False},
    fixed={"attention_bias": False, "layer_types": ["full_attention"]},
    counts_positions_by_yarn=True,
    turns=(chatml("qwen3", before_last="<think>\n\n</think>\n\n"),),
    stop_tokens=("<|im_end|>", "<|endoftext|>"),
    oldest_transformers=">=4.51",
    gguf="qwen3",
)
