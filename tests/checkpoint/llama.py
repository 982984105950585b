"""Small random Llamas, made and saved by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 4.0,
        "beta_slow": 1.0,
        "attention_factor": 1.0,
    },
}


def save_llama(
    folder: Path,
    *,
    tied: bool = False,
    rope: str = "default",
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    tokenizer: bool = True,
    seed: int = 0,
    **shape: Any,
) -> LlamaForCausalLM:
    """Save a Llama with odd widths and grouped queries; heads need not fill the hidden size."""
    sizes = {
        "vocab_size": 130,
        "hidden_size": 72,
        "intermediate_size": 100,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_theta": 10000.0, **ROPES[rope]},
        **shape,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**sizes)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # else all norms are ones, and one could stand for another
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        words = {f"w{i}": i for i in range(int(sizes["vocab_size"]))}
        Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
        values = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
        (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return model.eval()


def edit_config(folder: Path, **values: Any) -> None:
    """Change keys of ``config.json``; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    kept = {key: value for key, value in config.items() if value is not None}
    path.write_text(json.dumps(kept))
