"""Small random models of every family."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from megatron_ultralong.model.families import FAMILIES

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "base"
POSITIONS = 512


def write_family_model(folder: Path, name: str) -> Path:
    """A small random model of another family with the demo's tokenizer."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name](
        vocab_size=4104, hidden_size=128, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        max_position_embeddings=POSITIONS, initializer_range=0.1, **FAMILIES[name].stated,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    for key, parameter in model.named_parameters():
        if key.endswith((".bias", "_norm.weight")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|endoftext|>"])  # transformers adds Qwen's own
    special = tokenizer.get_added_tokens_decoder()
    decoded = ((i, tokenizer.decode([i])) for i in range(tokenizer.get_vocab_size()))
    # llama.cpp is told to write none that ends a text, and shows no token that is half a character
    unwanted = [i for i, text in decoded if i in special or "\ufffd" in text]
    model.lm_head.weight.data[unwanted] = 0
    model.save_pretrained(folder)
    shutil.copy(DEMO / "tokenizer_config.json", folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
