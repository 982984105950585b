"""Conversations out of records: ``messages``, ShareGPT, prompt and completion, Alpaca.

* ``messages`` (OpenAI, transformers): ``{"messages": [{"role": ..., "content": ...}, ...]}``, with
  ``tools``, ``builtin_tools`` and in an assistant's turn ``tool_calls``.
* ShareGPT: ``{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}, ...]}``,
  with ``system`` and ``tools``.
* prompt and completion (TRL): ``{"prompt": ..., "completion": ...}``, texts (a user's turn and the
  assistant's) or lists of turns, with ``tools``. The completion alone is learnt.
* Alpaca: ``{"instruction": ..., "input": ..., "output": ...}``, with ``system`` and ``history``
  (pairs of earlier turns). Instruction and input are one user turn, an empty line between them.

A list of turns may be JSON, or a list of JSON, and a turn may be spelled in either way
(:mod:`~megatron_ultralong.data.read.conversation_turns`). A key of a record or of a turn whose
value is null is one that is not there: parquet has every key in every record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from megatron_ultralong.data.read.conversation import (
    Conversation,
    ConversationError,
    Message,
    Role,
)
from megatron_ultralong.data.read.conversation_turns import (
    Reasoning,
    TurnOptions,
    Turns,
    content_of,
    read_turns,
)
from megatron_ultralong.data.read.conversation_values import builtin_tools_of, list_of, tools_of

ChatFormat = Literal["auto", "messages", "sharegpt", "prompt-completion", "alpaca"]
Fields = Mapping[str, Any]

MARKS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
"""Keys by which a record is known; the first format that has all of its own is taken."""

KEYS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "tools", "builtin_tools"),
    "sharegpt": ("conversations", "system", "tools"),
    "prompt-completion": ("prompt", "completion", "tools"),
    "alpaca": ("instruction", "input", "output", "system", "history"),
}
"""Keys of a record that are read."""


def parse_conversation(
    record: Fields,
    chat_format: ChatFormat,
    ignore_keys: Collection[str] = (),
    reasoning: Reasoning = "drop",
) -> Conversation:
    """The conversation of a record, cut to what can be learnt, and checked.

    Args:
        record: values by key.
        chat_format: ``auto`` goes by the record's keys, see :data:`MARKS`.
        ignore_keys: keys inside a turn that are passed over.
        reasoning: whether the assistant's reasoning is left out, or kept before the answer.

    Raises:
        ConversationError: it is none, or none to train on.
    """
    fields = {key: value for key, value in record.items() if value is not None}
    name = _format_of(fields) if chat_format == "auto" else chat_format
    missing = [key for key in MARKS[name] if key not in fields]
    if missing:
        raise ConversationError(
            "unknown format", f"a record of format {name} has no {missing[0]!r}; {_keys(fields)}"
        )
    conversation = _PARSERS[name](fields, TurnOptions(frozenset(ignore_keys), reasoning))
    conversation = conversation.learnable()
    conversation.check()
    return conversation


def _format_of(fields: Fields) -> str:
    for name, marks in MARKS.items():
        if all(key in fields for key in marks):
            return name
    known = ", ".join(f"{name} ({' and '.join(marks)})" for name, marks in MARKS.items())
    raise ConversationError(
        "unknown format", f"no format has these keys; {_keys(fields)}; known are {known}"
    )


def _keys(fields: Fields) -> str:
    return f"keys here: {', '.join(map(str, fields))[:300] or 'none'}"


def _messages(fields: Fields, options: TurnOptions) -> Conversation:
    turns = read_turns(fields["messages"], "messages", options)
    return _conversation(
        turns,
        fields,
        options,
        builtin_tools=builtin_tools_of(fields.get("builtin_tools"), options.texts),
    )


def _sharegpt(fields: Fields, options: TurnOptions) -> Conversation:
    turns = read_turns(fields["conversations"], "conversations", options)
    turns = dataclasses.replace(turns, messages=_system(fields, options) + turns.messages)
    return _conversation(turns, fields, options)


def _prompt_completion(fields: Fields, options: TurnOptions) -> Conversation:
    prompt = _side(fields["prompt"], "prompt", "user", options)
    completion = _side(fields["completion"], "completion", "assistant", options)
    read = [dataclasses.replace(message, is_learnt=False) for message in prompt.messages]
    has_reasoning = prompt.has_reasoning or completion.has_reasoning
    return _conversation(Turns(read + completion.messages, has_reasoning), fields, options)


def _side(value: Any, name: str, role: Role, options: TurnOptions) -> Turns:
    """Turns of a prompt or a completion; a text is one turn."""
    if isinstance(value, str):
        return Turns([Message(role, value)], has_reasoning=False)
    return read_turns(value, name, options)


def _alpaca(fields: Fields, options: TurnOptions) -> Conversation:
    messages = _system(fields, options)
    for number, pair in enumerate(list_of("history", fields.get("history", []))):
        pair = list_of(f"history {number}", pair)
        if len(pair) != 2:
            raise ConversationError(
                "wrong type", f"history {number} has {len(pair)} texts, not a question and answer"
            )
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    question, more = fields["instruction"], fields.get("input", "")
    for key, value in (("instruction", question), ("input", more)):
        if not isinstance(value, str):
            raise ConversationError("wrong type", f"{key} is a {type(value).__name__}, not a text")
    if more.strip():
        question = f"{question.strip()}\n\n{more.strip()}"
    messages += [Message("user", question), Message("assistant", fields["output"])]
    return _conversation(Turns(messages, has_reasoning=False), {}, options)


_PARSERS: dict[str, Callable[[Fields, TurnOptions], Conversation]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt-completion": _prompt_completion,
    "alpaca": _alpaca,
}


def _conversation(
    turns: Turns,
    fields: Fields,
    options: TurnOptions,
    builtin_tools: tuple[str, ...] | None = None,
) -> Conversation:
    return Conversation(
        _without_empty_system(turns.messages),
        tools_of(fields.get("tools"), options.texts),
        builtin_tools,
        has_reasoning=turns.has_reasoning,
    )


def _system(fields: Fields, options: TurnOptions) -> list[Message]:
    text = content_of("system", "system", fields.get("system", ""), options)
    return [Message("system", text)] if text else []


def _without_empty_system(messages: list[Message]) -> tuple[Message, ...]:
    """Many sets have an empty system turn in every conversation: it says nothing."""
    first = messages[0]
    is_empty = first.role == "system" and isinstance(first.content, str)
    if is_empty and not first.content.strip():
        return tuple(messages[1:])
    return tuple(messages)
