"""Qwen2.5, and Qwen2 of the same parts: Llama's layer with biases on queries, keys and values."""

import functools

from megatron_ultralong.model.families.family import (
    QKV_BIAS,
    TIED,
    Family,
    chatml,
    layer_with,
    shape,
)

_qwen = functools.partial(
    shape,
    vocab_size=152064,
    norm_epsilon=1e-6,
    rotary_base=1000000.0,
    max_position_embeddings=32768,
)
_SMALL = {"vocab_size": 151936, **TIED}

QWEN2 = Family(
    name="qwen2",
    title="Qwen2.5",
    architecture="Qwen2ForCausalLM",
    models={
        "qwen2.5-0.5b": _qwen(24, 896, 4864, 14, 2, **_SMALL),
        "qwen2.5-1.5b": _qwen(28, 1536, 8960, 12, 2, **_SMALL),
        "qwen2.5-3b": _qwen(36, 2048, 11008, 16, 2, **_SMALL),
        "qwen2.5-7b": _qwen(28, 3584, 18944, 28, 4),
        "qwen2.5-14b": _qwen(48, 5120, 13824, 40, 8),
        "qwen2.5-32b": _qwen(64, 5120, 27648, 40, 8),
        "qwen2.5-72b": _qwen(80, 8192, 29568, 64, 8),
    },
    layer=layer_with(
        **{QKV_BIAS: ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")}
    ),
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768},
    stated={"use_sliding_window": False},
    fixed={"layer_types": ["full_attention"], "dual_chunk_attention_config": None},
    counts_positions_by_yarn=True,
    turns=(
        chatml("qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    ),
    stop_tokens=("<|im_end|>", "<|endoftext|>"),
    gguf="qwen2",
)
