"""Folders with several chat templates: each conversation is written by the one of transformers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.prepare.chats import prepare_chat
from megatron_ultralong.data.read.conversation_formats import parse_conversation
from megatron_ultralong.data.tokenize.folder_template import FolderTemplate, folder_template
from megatron_ultralong.program.errors import InputError
from tests.data.chats import TEMPLATE, write_chat_tokenizer, write_jsonl

TOOLS = [{"type": "function", "function": {"name": "f"}}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "r"},
    {"role": "assistant", "content": "a"},
]
RECORDS: list[dict[str, Any]] = [
    {"messages": [TURNS[0], TURNS[3]]},
    {"messages": TURNS, "tools": TOOLS},
]
FILES = (
    "chat_template.jinja",
    *(f"additional_chat_templates/{n}.jinja" for n in ("tool_use", "x")),
)
LISTED: list[Any] = [None, "config", ["default"], ["default", "tool_use"], ["tool_use", "x"]]


def write(folder: Path, listed: Any, files: tuple[str, ...], texts: dict[str, str]) -> None:
    write_chat_tokenizer(folder, "")
    values = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    named = [{"name": n, "template": texts.get(n, f"{n} of config")} for n in listed or ()]
    if listed is not None:
        values["chat_template"] = named if isinstance(listed, list) else listed  # type: ignore[assignment]
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    (folder / "additional_chat_templates").mkdir(exist_ok=True)
    for name in files:
        (folder / name).write_text(texts.get(Path(name).stem, name))


def test_the_template_of_each_conversation_is_that_of_transformers(tmp_path: Path) -> None:
    choices = itertools.product(LISTED, *([(), (name,)] for name in FILES))
    for number, (listed, *files) in enumerate(choices):
        folder = tmp_path / str(number)
        write(folder, listed, tuple(itertools.chain(*files)), {})
        judge = PreTrainedTokenizerFast.from_pretrained(folder)
        text = folder_template(folder)
        for record in RECORDS:
            try:
                expected = judge.apply_chat_template(
                    record["messages"], tools=record.get("tools"), tokenize=False
                )
            except ValueError:  # it has no template, or no default
                continue
            if text is None:  # then rows are written in --chat-template
                assert "tools" in record
                continue
            with FolderTemplate(text, folder) as found:
                conversation = parse_conversation(record, "auto")
                assert found.render_conversation(conversation, "today").text == expected


@pytest.mark.parametrize("place", ["listed", "file"])
def test_conversations_with_tools_are_compared_with_the_template_for_tools(
    tmp_path: Path, place: str
) -> None:
    other = TEMPLATE.replace("Given the following functions", "Of these functions")
    source = write_jsonl(tmp_path / "chats.jsonl", RECORDS)
    for name, text in (("same", TEMPLATE), ("other", other), ("broken", "{% if %}")):
        folder = tmp_path / name
        texts = {"default": TEMPLATE, "chat_template": TEMPLATE, "tool_use": text}
        if place == "listed":
            write(folder, ["default", "tool_use"], (), texts)
        else:
            write(folder, None, FILES[:2], texts)
        config = PrepareChatConfig(
            source=(f"own={source}",), tokenizer=folder, output=tmp_path / "rows", valid_fraction=0
        )
        if name == "same":
            assert prepare_chat(config).splits["train"].num_examples == 2
            config.output.rename(tmp_path / "done")
        else:
            with pytest.raises(InputError, match=r"chats.jsonl:2: beyond the template: the .*"):
                prepare_chat(config)
