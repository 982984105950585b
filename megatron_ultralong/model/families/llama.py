"""Llama 2, 3, 3.1, 3.2 and 3.3, and what else is a ``LlamaForCausalLM``."""

from collections.abc import Mapping
from typing import Any

from megatron_ultralong.model.families.family import Family, Turns


def _llama3(
    num_layers: int, hidden_size: int, ffn_hidden_size: int, **others: Any
) -> Mapping[str, Any]:
    """Heads of 128 channels and 8 of keys, unless ``others`` say something else."""
    return {
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "ffn_hidden_size": ffn_hidden_size,
        "num_attention_heads": hidden_size // 128,
        "num_query_groups": 8,
        "kv_channels": 128,
        "vocab_size": 128256,
        "norm_epsilon": 1e-5,
        "rotary_base": 500000.0,
        "max_position_embeddings": 131072,
        "untie_embeddings_and_output_weights": True,
        **others,
    }


_TIED = {"untie_embeddings_and_output_weights": False}
_HEADER = ("<|start_header_id|>", "<|end_header_id|>")
_ROLES = ("system", "user", "assistant")

LLAMA = Family(
    name="llama",
    title="Llama",
    architecture="LlamaForCausalLM",
    models={
        "llama3.1-8b": _llama3(32, 4096, 14336),
        "llama3.1-70b": _llama3(80, 8192, 28672),
        "llama3.1-405b": _llama3(126, 16384, 53248),
        "llama3.2-1b": _llama3(16, 2048, 8192, num_attention_heads=32, kv_channels=64, **_TIED),
        "llama3.2-3b": _llama3(28, 3072, 8192, **_TIED),
        "demo": _llama3(
            *(3, 256, 640),
            num_attention_heads=4,
            num_query_groups=2,
            kv_channels=32,
            vocab_size=4096,
            rotary_base=10000.0,
            max_position_embeddings=512,
            **_TIED,
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
