from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_ultralong.data.rows.indexed import IndexedWriter, token_dtype
from megatron_ultralong.evaluation.models.language_models import HuggingFaceModel
from megatron_ultralong.evaluation.retrieval.passkey_prompt import (
    INTRODUCTION,
    NEEDLE,
    NOISE,
    QUESTION,
)

VOCAB_SIZE = 96
SEPARATOR = (7, 8)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def encode() -> Callable[[str], list[int]]:
    """A real tokenizer: words, spaces, marks and single digits."""
    split = Split(Regex(r"\d|\w+|\s|[^\w\s]"), "isolated")
    pieces: set[str] = set("0123456789") | {"?"}
    for text in (INTRODUCTION, NOISE, NEEDLE.format(key="1"), QUESTION):
        pieces.update(piece for piece, _ in split.pre_tokenize_str(text))
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", *sorted(pieces)])}
    assert len(vocabulary) <= VOCAB_SIZE
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def make_llama(max_positions: int, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=max_positions,
            initializer_range=0.2,  # far from uniform predictions: losses that differ by position
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "base"
    make_llama(max_positions=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def scorer(llama_folder: Path) -> HuggingFaceModel:
    return HuggingFaceModel(llama_folder)


@pytest.fixture(scope="session")
def rows() -> np.ndarray:
    """Five rows of 64 random ids with separators in them, shape [5, 64]."""
    tokens = np.random.default_rng(0).integers(10, VOCAB_SIZE, size=(5, 64))
    for row in range(5):
        for start in (11 + row, 40 - row):
            tokens[row, start : start + 2] = SEPARATOR
    return tokens


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory, rows: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with IndexedWriter(folder / "valid", token_dtype(VOCAB_SIZE)) as writer:
        for row in rows:
            writer.add(row)
    return folder
