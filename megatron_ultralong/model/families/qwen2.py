"""Qwen2.5, and Qwen2 of the same parts: Llama's layer with biases on queries, keys and values."""

from megatron_ultralong.model.families import family

_SMALL = {"vocab_size": 151936, **family.TIED}

QWEN2 = family.Family(
    name="qwen2",
    title="Qwen2.5",
    architecture="Qwen2ForCausalLM",
    shape=family.common(152064, 1e-6, 1000000.0, 32768),
    models={
        "qwen2.5-0.5b": family.sizes(24, 896, 4864, 14, 2, **_SMALL),
        "qwen2.5-1.5b": family.sizes(28, 1536, 8960, 12, 2, **_SMALL),
        "qwen2.5-3b": family.sizes(36, 2048, 11008, 16, 2, **_SMALL),
        "qwen2.5-7b": family.sizes(28, 3584, 18944, 28, 4),
        "qwen2.5-14b": family.sizes(48, 5120, 13824, 40, 8),
        "qwen2.5-32b": family.sizes(64, 5120, 27648, 40, 8),
        "qwen2.5-72b": family.sizes(80, 8192, 29568, 64, 8),
    },
    layer=family.layer_with(
        **{
            family.QKV_BIAS: (
                "self_attn.q_proj.bias",
                "self_attn.k_proj.bias",
                "self_attn.v_proj.bias",
            )
        }
    ),
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768},
    stated={"use_sliding_window": False},
    fixed={"dual_chunk_attention_config": None},
    counts_positions_by_yarn=True,
    turns=(
        family.chatml(
            "qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        ),
    ),
    stop_tokens=("<|im_end|>", "<|endoftext|>"),
    gguf="qwen2",
)
