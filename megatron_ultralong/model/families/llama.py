"""Llama 2, 3, 3.1, 3.2 and 3.3, and what else is a ``LlamaForCausalLM``."""

from megatron_ultralong.model.families import family

_HEADER = ("<|start_header_id|>", "<|end_header_id|>")
_ROLES = ("system", "user", "assistant")

LLAMA = family.Family(
    name="llama",
    title="Llama",
    architecture="LlamaForCausalLM",
    shape=family.common(128256, 1e-5, 500000.0, 131072),
    models={
        "llama3.1-8b": family.sizes(32, 4096, 14336, 32),
        "llama3.1-70b": family.sizes(80, 8192, 28672, 64),
        "llama3.1-405b": family.sizes(126, 16384, 53248, 128),
        "llama3.2-1b": family.sizes(16, 2048, 8192, 32, **family.TIED),
        "llama3.2-3b": family.sizes(28, 3072, 8192, 24, **family.TIED),
        "demo": family.sizes(
            *(3, 256, 640, 4, 2),
            kv_channels=32,
            vocab_size=4096,
            rotary_base=10000.0,
            max_position_embeddings=512,
            **family.TIED,
        ),
    },
    fixed={"attention_bias": False, "mlp_bias": False},
    turns=(
        family.Turns(
            "<|begin_of_text|>",
            {role: (_HEADER[0], role, _HEADER[1], "\n\n") for role in _ROLES},
            dict.fromkeys(_ROLES, ("<|eot_id|>",)),
            ("<|begin_of_text|>", *_HEADER, "<|eot_id|>"),
        ),
    ),
    stop_tokens=("<|end_of_text|>", "<|eot_id|>", "</s>"),
)
