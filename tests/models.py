"""Small random Llamas in Hugging Face format, and rows for them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.pack.sampling import LengthSampling
from megatron_ultralong.data.prepare.documents import prepare

SCALED: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "beta_fast": 4.0,
        "beta_slow": 1.0,
        "attention_factor": 1.2,
        "original_max_position_embeddings": 64,
    },
}
"""Rope blocks for eight times 64 positions."""
TEXT = "def f(x):\n    return x + 1\n\n\nclass A:\n    pass\n"


def write_tokenizer(folder: Path, text: str = TEXT, vocab_size: int = 320) -> None:
    """A byte-level BPE tokenizer, in which ``<s>`` is several plain ids."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text * 50], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_llama(folder: Path, *, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A random Llama (4 layers, 4 query heads, 2 key heads) with tokenizer, in float32."""
    return write_model(folder, "llama", seed=seed, **changes)


def write_model(folder: Path, model_type: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """The same of another family."""
    values: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "initializer_range": 0.15,  # so that attention and logits are far from uniform
        **changes,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**values)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):  # all ones would hide a norm that is left out
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith(".bias"):  # as would zeros a bias
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def prepare_rows(
    folder: Path,
    texts: Iterable[str],
    tokenizer: Path,
    seq_length: int,
    name: str = "rows",
    **changes: Any,
) -> None:
    """``documents.jsonl`` of these texts in ``folder``, and rows of each of them once."""
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "documents.jsonl").write_text("\n".join(lines))
    prepare(
        PrepareConfig(
            source=(f"code={folder / 'documents.jsonl'}",),
            tokenizer=tokenizer,
            output=folder / name,
            seq_length=seq_length,
            sampling=LengthSampling("none"),
            **changes,
        )
    )
