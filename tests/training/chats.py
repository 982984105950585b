"""A tiny converted model with Llama 3's special tokens, and conversations for it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.prepare.chats import prepare_chat
from megatron_ultralong.data.tokenize.chat_template import TEMPLATES
from tests.models import TEXT, write_llama


def write_chat_model(folder: Path, **changes: Any) -> None:
    """``hf``, a model whose tokenizer has the template's tokens, and ``base``, converted."""
    write_llama(folder / "hf", vocab_size=336, num_key_value_heads=4, **changes)
    tokenizer = Tokenizer.from_file(str(folder / "hf" / "tokenizer.json"))
    tokenizer.add_special_tokens([*TEMPLATES["llama3.1"].special, "<|end_of_text|>"])
    tokenizer.save(str(folder / "hf" / "tokenizer.json"))
    settings = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    (folder / "hf" / "tokenizer_config.json").write_text(json.dumps(settings))
    import_checkpoint(ImportConfig(folder / "hf", folder / "base"))


def write_chats(folder: Path, count: int) -> None:
    """``own.jsonl``, so many conversations for ``hf``, and ``chats``, rows of 128 tokens of it."""
    records = "".join(json.dumps(record) + "\n" for record in conversations(count))
    (folder / "own.jsonl").write_text(records)
    config = PrepareChatConfig(
        source=(f"own={folder}/own.jsonl",),
        tokenizer=folder / "hf",
        output=folder / "chats",
        seq_length=128,
        too_long="drop",
        valid_fraction=0.3,
    )
    prepare_chat(config)


def conversations(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations of one to three questions and answers, all different."""
    generator = random.Random(seed)

    def text() -> str:
        start = generator.randrange(len(TEXT) - 4)
        return TEXT[start : start + generator.randint(4, 40)].strip() or "x"

    records = []
    for number in range(count):
        turns = []
        for _ in range(generator.randint(1, 3)):
            turns += [("user", f"{number} {text()}"), ("assistant", text())]
        records.append({"messages": [{"role": r, "content": c} for r, c in turns]})
    return records
