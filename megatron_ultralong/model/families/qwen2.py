"""Qwen2.5, and Qwen2 of the same parts: Llama's layer with biases on queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from megatron_ultralong.model.families.family import QKV_BIAS, Family, chatml, layer_with


def _qwen(
    num_layers: int, hidden_size: int, ffn_hidden_size: int, heads: int, groups: int, **others: Any
) -> Mapping[str, Any]:
    return {
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "ffn_hidden_size": ffn_hidden_size,
        "num_attention_heads": heads,
        "num_query_groups": groups,
        "kv_channels": hidden_size // heads,
        "vocab_size": 152064,
        "norm_epsilon": 1e-6,
        "rotary_base": 1000000.0,
        "max_position_embeddings": 32768,
        "untie_embeddings_and_output_weights": True,
        **others,
    }


_SMALL = {"vocab_size": 151936, "untie_embeddings_and_output_weights": False}

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
