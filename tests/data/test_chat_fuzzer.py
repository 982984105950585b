"""The same conversations in every format: the same tokens and targets, and transformers' own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from megatron_ultralong.data.read.options import ChatReadOptions
from megatron_ultralong.data.read.reading import ConversationReader, Source
from megatron_ultralong.data.tokenize.chat_encoder import ChatEncoder, Example
from megatron_ultralong.data.tokenize.chat_template import TEMPLATES
from megatron_ultralong.data.tokenize.tokenizer_model import Llama3Tokenizer
from tests.data.chat_fuzz import File, expected_mask
from tests.data.chats import TEMPLATE

IN_A_FILE = 20
DATE = "28 Nov 2026"


def examples_of(path: Path, encoder: ChatEncoder) -> list[Example]:
    reader = ConversationReader(Source("x", str(path)), ChatReadOptions())
    return encoder.encode([encoder.template.render(chat, DATE) for _, chat in reader])


def mask(example: Example) -> list[int]:
    found = [0] * example.tokens.size
    for start, stop in example.targets.tolist():
        found[start:stop] = [1] * (stop - start)
    return found


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(3), id="60"),
        pytest.param(range(3, 53), id="1000", marks=pytest.mark.slow),
    ],
)
def test_every_format_is_what_transformers_writes(
    llama3: Llama3Tokenizer, judge: PreTrainedTokenizerFast, tmp_path: Path, seeds: range
) -> None:
    encoder = ChatEncoder(TEMPLATES["llama3.1"], llama3)
    for seed in seeds:
        file = File(random.Random(seed), IN_A_FILE)
        found = {
            name: examples_of(path, encoder)
            for name, path in file.write(tmp_path / str(seed)).items()
        }
        for name, examples in found.items():
            assert len(examples) == IN_A_FILE, (seed, name)
            for number, (chat, example) in enumerate(zip(file.judged, examples, strict=True)):
                check(judge, chat, example, f"seed {seed}, {name}, conversation {number}")


def check(
    judge: PreTrainedTokenizerFast, chat: dict[str, Any], example: Example, where: str
) -> None:
    tokens = judge.apply_chat_template(
        chat["messages"],
        chat_template=TEMPLATE,
        tools=chat.get("tools"),
        date_string=DATE,
        return_dict=False,
    )
    assert example.tokens.tolist() == tokens, f"{where}: {judge.decode(example.tokens.tolist())}"
    assert mask(example) == expected_mask(tokens, chat["weights"]), where
