"""The demo's base model: its shape, and the Hugging Face folder it is saved to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from base_corpus import SPECIAL_TOKENS
from tokenizers import Tokenizer

from megatron_ultralong.program.aside import whole


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """Shape of the Llama; the embedding is also the output layer."""

    vocab_size: int
    context: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float

    def config(self) -> transformers.LlamaConfig:
        """The transformers configuration."""
        return transformers.LlamaConfig(
            vocab_size=self.vocab_size,
            max_position_embeddings=self.context,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            rope_theta=self.rope_theta,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=self.vocab_size - 2,
            eos_token_id=self.vocab_size - 1,
            attn_implementation="sdpa",
        )


def save(
    model: Any, tokenizer: Tokenizer, shape: ModelShape, record: dict[str, Any], output: Path
) -> None:
    """Write the folder aside and rename it: weights in bfloat16, config as Llama 3 spells it."""
    special = dict(zip(("bos_token", "eos_token"), SPECIAL_TOKENS, strict=True))
    ids = {"bos_token_id": shape.vocab_size - 2, "eos_token_id": shape.vocab_size - 1}
    contents: dict[str, dict[str, Any]] = {
        "config.json": llama_config(shape) | ids,
        "generation_config.json": ids | {"do_sample": False},
        "tokenizer_config.json": special
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": shape.context,
            "clean_up_tokenization_spaces": False,
        },
        "training.json": record,
    }
    with whole(output) as aside:
        model.to(torch.bfloat16).save_pretrained(aside)
        tokenizer.save(str(aside / "tokenizer.json"))
        for name, content in contents.items():
            (aside / name).write_text(json.dumps(content, indent=1) + "\n")


def llama_config(shape: ModelShape) -> dict[str, Any]:
    """``config.json`` with the keys of the published Llama 3 checkpoints."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.context,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }
