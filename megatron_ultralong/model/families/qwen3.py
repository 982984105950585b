"""Qwen3, dense: Llama's layer with norms of queries and keys, in heads of 128 at any width."""

from megatron_ultralong.model.families import family

QWEN3 = family.Family(
    name="qwen3",
    title="Qwen3 (dense)",
    architecture="Qwen3ForCausalLM",
    shape=family.common(151936, 1e-6, 1000000.0, 40960, kv_channels=128),
    models={
        "qwen3-0.6b": family.sizes(28, 1024, 3072, 16, **family.TIED),
        "qwen3-1.7b": family.sizes(28, 2048, 6144, 16, **family.TIED),
        "qwen3-4b": family.sizes(36, 2560, 9728, 32, **family.TIED),
        "qwen3-8b": family.sizes(36, 4096, 12288, 32),
        "qwen3-14b": family.sizes(40, 5120, 17408, 40),
        "qwen3-32b": family.sizes(64, 5120, 25600, 64),
    },
    layer=family.layer_with(
        **{
            family.QK_NORMS[0]: ("self_attn.q_norm.weight",),
            family.QK_NORMS[1]: ("self_attn.k_norm.weight",),
        }
    ),
    defaults={"head_dim": 128, "num_key_value_heads": 32, "max_position_embeddings": 32768},
    stated={"use_sliding_window": False},
    fixed={"attention_bias": False},
    counts_positions_by_yarn=True,
    turns=(family.chatml("qwen3", thought=("<think>\n", "\n</think>\n\n")),),
    stop_tokens=("<|im_end|>", "<|endoftext|>"),
    gguf="qwen3",
)
