"""Records of evaluations, and conversations."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from megatron_ultralong.data.arrow_values import python_rows
from megatron_ultralong.data.chat_marks import with_marks
from megatron_ultralong.data.chat_template import DATE, TEMPLATES
from megatron_ultralong.data.conversation_formats import parse_conversation
from megatron_ultralong.evaluation.journal import open_journal
from megatron_ultralong.generation.continuation import make_batches
from tests.growth.table import Work, counted


@counted(50)
def samples_in_a_journal(n: int, folder: Path) -> Work:
    def note() -> None:
        opened = open_journal(folder / "out", "kind", {}, is_main=True)
        with contextlib.suppress(KeyboardInterrupt), opened as journal:
            for number in range(n):
                journal.add(str(number), {"score": number})
            raise KeyboardInterrupt
        with open_journal(folder / "out", "kind", {}, is_main=True) as journal:
            assert [journal.get(str(number)) for number in range(n)][-1] == {"score": n - 1}

    return note


@counted(1000)
def batches_of_prompts(n: int, folder: Path) -> Work:
    lengths = np.random.default_rng(0).integers(1, 1000, size=n).tolist()
    return lambda: make_batches(lengths, 8, 4000)


@counted(200)
def turns_of_a_conversation(n: int, folder: Path) -> Work:
    turns = [{"role": role, "content": "abc"} for role in ("user", "assistant")] * n
    tool = {"name": "f", "parameters": {"properties": {"x": {"default": None, "type": "string"}}}}
    batch = pa.RecordBatch.from_pylist([{"messages": turns, "tools": [tool] * n}])

    def prepare() -> None:
        (record,) = python_rows(batch)
        conversation = parse_conversation(record, "auto")
        pieces = TEMPLATES["plain"].render(
            parse_conversation({"messages": record["messages"]}, "auto"), DATE
        )
        assert len(conversation.tools or ()) == n
        assert len(with_marks(pieces, [(5 * i, 5 * i + 3) for i in range(n)], "</s>")) > 6 * n

    return prepare
