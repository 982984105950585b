"""Conversations in the turns of every family: text, ids and masks of transformers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from megatron_ultralong.data.read.conversation import ConversationError
from megatron_ultralong.data.read.conversation_formats import parse_conversation
from megatron_ultralong.data.tokenize.chat_encoder import ChatEncoder
from megatron_ultralong.data.tokenize.chat_template import DATE, TEMPLATES, TemplateName
from megatron_ultralong.data.tokenize.folder_template import FolderTemplate
from megatron_ultralong.data.tokenize.template_comparison import check_template, fitted_template
from megatron_ultralong.data.tokenize.tokenising import HuggingFaceTokenizer
from megatron_ultralong.program.errors import InputError
from tests.models import write_tokenizer

QWEN = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' and DEFAULT %}"
    "<|im_start|>system\n{{ DEFAULT }}<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}"
    "{% set parts = m.content.split('</think>') if THINKS else [m.content] %}"
    "{% set thought = parts[0].rstrip('\n').split('<think>')[-1].strip('\n') %}"
    "{% set thought = thought if parts[1:] else '' %}"
    "{% if THINKS and loop.last and not thought %}<think>\n\n</think>\n\n{% endif %}"
    "{% generation %}"
    "{% if loop.last and thought %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ parts[-1].lstrip('\n') if THINKS else m.content }}"
    "<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
"""What the templates of Qwen2.5 and Qwen3 write for messages without tools."""
DEFAULT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
JINJA: dict[TemplateName, str] = {
    "chatml": "{% set DEFAULT, THINKS = '', false %}" + QWEN,
    "qwen2.5": "{% set DEFAULT, THINKS = '" + DEFAULT + "', false %}" + QWEN,
    "qwen3": "{% set DEFAULT, THINKS = '', true %}" + QWEN,
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SAID = [
    *("Why?", " two  spaces ", "\n\nfirst a line", "", "x <|im_end|> y", "1\n", "ünï 数", "don't"),
    *(
        "<think>\nr 1\n\n2\n</think>\n\nso",
        "<think>\n\n</think>\n\nno",
        "<think>x</think>",
        "r</think>z",
    ),
]


def tokenizer_of(folder: Path) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(folder / "tokenizer.json")


def conversations() -> list[list[dict[str, Any]]]:
    found = []
    for number in range(24):
        roles = ["system"] * (number % 3 == 0) + ["user", "assistant"] * (1 + number % 3)
        texts = [SAID[(number * 5 + place * 3) % len(SAID)] for place in range(len(roles))]
        found.append([dict(role=r, content=t or "?") for r, t in zip(roles, texts, strict=True)])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chatml")
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text) for text in ("<think>", "</think>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("name", JINJA)
def test_ids_and_masks_are_those_of_transformers(folder: Path, name: TemplateName) -> None:
    judge = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    encoder = ChatEncoder(TEMPLATES[name], HuggingFaceTokenizer(folder / "tokenizer.json"))
    for messages in conversations():
        # a mark in a text is text here, and there the mark; an answer begins with its first letter
        plain = [
            {
                "role": m["role"],
                "content": m["content"].replace("<|im_end|>", "").lstrip()
                if m["role"] == "assistant"
                else m["content"].replace("<|im_end|>", ""),
            }
            for m in messages
        ]
        expected = judge.apply_chat_template(
            plain,
            chat_template=JINJA[name],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        conversation = parse_conversation({"messages": plain}, "auto")
        [example] = encoder.encode([encoder.template.render(conversation, DATE)])
        assert example.tokens.tolist() == list(expected["input_ids"]), messages
        mask = np.zeros(len(example.tokens), dtype=int)
        for start, stop in example.targets.tolist():
            mask[start:stop] = 1
        assert mask.tolist() == list(expected["assistant_masks"]), messages
        marked = parse_conversation({"messages": messages}, "auto")
        [safe] = encoder.encode([encoder.template.render(marked, DATE)])
        end = judge.convert_tokens_to_ids("<|im_end|>")
        assert (safe.tokens == end).sum() == (example.tokens == end).sum()


@pytest.mark.parametrize("name", JINJA)
def test_the_folder_s_template_is_compared(folder: Path, name: TemplateName) -> None:
    with FolderTemplate(JINJA[name], folder) as found:
        check_template(TEMPLATES[name], found, DATE, tokenizer_of(folder))
    whole = JINJA["qwen3"].replace("parts[-1].lstrip", "m.content.lstrip")  # keeps all thoughts
    with (
        FolderTemplate(whole, folder) as found,
        pytest.raises(InputError, match="--chat-template qwen3 is not the template"),
    ):
        check_template(TEMPLATES["qwen3"], found, DATE, tokenizer_of(folder))
    other: TemplateName = "qwen2.5" if name == "qwen3" else "qwen3"
    with (
        FolderTemplate(JINJA[other], folder) as found,
        pytest.raises(InputError, match=f"--chat-template {name} is not the template"),
    ):
        check_template(TEMPLATES[name], found, DATE, tokenizer_of(folder))


@pytest.mark.parametrize(
    "default", ["", "You are a helpful AI assistant named S.", DEFAULT, "a\nb"]
)
def test_chatml_takes_the_default_system_turn_of_the_folder(folder: Path, default: str) -> None:
    """SmolLM2, Hermes and others have ChatML's turns, each behind a system turn of its own."""
    text = f"{{% set DEFAULT, THINKS = {json.dumps(default)}, false %}}{QWEN}"
    judge = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with FolderTemplate(text, folder) as found:
        fitted = fitted_template(TEMPLATES["chatml"], found, DATE)
        check_template(fitted, found, DATE, tokenizer_of(folder))
        assert fitted_template(TEMPLATES["qwen3"], found, DATE) is TEMPLATES["qwen3"]
        if default == DEFAULT:  # not the other one, which needs the folder's system turn
            with pytest.raises(InputError, match=r"use --chat-template qwen2\.5, which writes the"):
                check_template(TEMPLATES["qwen3"], found, DATE, tokenizer_of(folder))
        if default not in ("", DEFAULT):
            with pytest.raises(InputError, match="use --chat-template chatml, which writes the"):
                check_template(TEMPLATES["qwen2.5"], found, DATE, tokenizer_of(folder))
    encoder = ChatEncoder(fitted, HuggingFaceTokenizer(folder / "tokenizer.json"))
    for roles in (("user", "assistant"), ("system", "user", "assistant")):
        messages = [dict(role=role, content=f"{role} says") for role in roles]
        conversation = parse_conversation({"messages": messages}, "auto")
        [example] = encoder.encode([fitted.render(conversation, DATE)])
        for template in (text, fitted.jinja):
            ids = judge.apply_chat_template(messages, chat_template=template)["input_ids"]
            assert example.tokens.tolist() == list(ids), messages


def test_what_a_template_looks_for_stands_in_its_tags(folder: Path) -> None:
    """An apostrophe in the text around them is no quote; and each is passed once."""
    text = (
        "I'm a helper.{% for m in messages %}{# it's #}{{ m.role }}: {% if '</think>' in m.content "
        "and not loop.last %}{{ m.content.split('</think>')[-1] }}{% endif %}{% endfor %}"
    )
    said = [("I'm", False), ("a }} b", False), ("t</think>a", True)]
    with FolderTemplate(text, folder) as found:
        for content, is_otherwise in said:
            messages = [dict(role="user", content="q"), dict(role="assistant", content=content)]
            conversation = parse_conversation({"messages": messages}, "auto")
            assert found.may_treat_otherwise(conversation) == is_otherwise, content
    for many in ("{{ " + "\\'" * 2**18, "{% '" * 2**18, "{{" + "\\" * 2**19):
        with contextlib.suppress(InputError), FolderTemplate(many, folder):
            pass


def test_thoughts_are_learnt_where_the_model_writes_them() -> None:
    """Qwen3's own template: of the last answer; rows had an empty thought before the real one."""
    roles = ("user", "assistant") * 2
    texts = ("1", "<think>\na\n</think>\n\nb", "2", "<think>\nc\n</think>\n\nd")
    messages = [dict(role=role, content=text) for role, text in zip(roles, texts, strict=True)]
    pieces = TEMPLATES["qwen3"].render(parse_conversation({"messages": messages}, "auto"), DATE)
    learnt = [piece.text for piece in pieces if piece.is_target]
    assert learnt == ["b", "<|im_end|>", "<think>\nc\n</think>\n\nd", "<|im_end|>"]
    assert "<think>\n\n</think>" not in "".join(piece.text for piece in pieces)
    messages[2]["content"] = "<tool_response>2</tool_response>"
    with pytest.raises(ConversationError, match="user's turn of <tool_response>"):
        TEMPLATES["qwen3"].render(parse_conversation({"messages": messages}, "auto"), DATE)


def test_what_it_cannot_write_is_told() -> None:
    conversation = parse_conversation({"messages": [dict(role="user", content="a")] * 1 + [
        dict(role="assistant", content="b")]}, "auto")  # fmt: skip
    tools = dataclasses.replace(conversation, tools=({"name": "f"},))
    with pytest.raises(ConversationError, match=r"template qwen3 cannot write: llama3\.1 alone"):
        TEMPLATES["qwen3"].render(tools, DATE)
    writers = []
    for name, template in TEMPLATES.items():
        with contextlib.suppress(ConversationError):
            template.render(tools, DATE)
            writers.append(name)
    assert writers == ["llama3.1"]  # as messages and docs/instruction_tuning.md say


def test_a_tokenizer_without_the_marks_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"--chat-template qwen3 needs the special tokens <\|im_s"):
        ChatEncoder(TEMPLATES["qwen3"], HuggingFaceTokenizer(tmp_path / "tokenizer.json"))
