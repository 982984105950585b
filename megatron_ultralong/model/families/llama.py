"""Llama 2, 3, 3.1, 3.2 and 3.3, and what else is a ``LlamaForCausalLM``."""

import functools

from megatron_ultralong.model.families.family import TIED, Family, Turns, shape

_llama3 = functools.partial(
    shape,
    vocab_size=128256,
    norm_epsilon=1e-5,
    rotary_base=500000.0,
    max_position_embeddings=131072,
)
_HEADER = ("<|start_header_id|>", "<|end_header_id|>")
_ROLES = ("system", "user", "assistant")

LLAMA = Family(
    name="llama",
    title="Llama",
    architecture="LlamaForCausalLM",
    models={
        "llama3.1-8b": _llama3(32, 4096, 14336, 32),
        "llama3.1-70b": _llama3(80, 8192, 28672, 64),
        "llama3.1-405b": _llama3(126, 16384, 53248, 128),
        "llama3.2-1b": _llama3(16, 2048, 8192, 32, **TIED),
        "llama3.2-3b": _llama3(28, 3072, 8192, 24, **TIED),
        "demo": _llama3(
            *(3, 256, 640, 4, 2),
            kv_channels=32,
            vocab_size=4096,
            rotary_base=10000.0,
            max_position_embeddings=512,
            **TIED,
        ),
    },
    fixed={"attention_bias": False, "mlp_bias": False},
    turns=(
        Turns(
            "<|begin_of_text|>",
            {role: (_HEADER[0], role, _HEADER[1], "\n\n") for role in _ROLES},
            dict.fromkeys(_ROLES, ("<|eot_id|>",)),
            ("<|begin_of_text|>", *_HEADER, "<|eot_id|>"),
        ),
    ),
    stop_tokens=("<|end_of_text|>", "<|eot_id|>", "</s>"),
)
