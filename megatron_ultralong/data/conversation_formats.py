"""Conversations out of records: ``messages``, ShareGPT and Alpaca.

* ``messages`` (OpenAI, transformers): ``{"messages": [{"role": ..., "content": ...}, ...]}``, with
  ``tools``, ``builtin_tools`` and in an assistant's turn ``tool_calls``.
* ShareGPT: ``{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}, ...]}``,
  with ``system`` and ``tools``.
* Alpaca: ``{"instruction": ..., "input": ..., "output": ...}``, with ``system`` and ``history``
  (pairs of earlier turns). Instruction and input are one user turn, an empty line between them.

A key whose value is null is one that is not there: parquet has every key in every record.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from megatron_ultralong.data.bounded import json_value, value_error
from megatron_ultralong.data.conversation import (
    ROLES,
    Conversation,
    ConversationError,
    Message,
    Role,
    ToolCall,
)

ChatFormat = Literal["auto", "messages", "sharegpt", "alpaca"]
Fields = Mapping[str, Any]

MARKS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
}
"""Keys by which a record is known; the first format that has all of its own is taken."""

KEYS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "tools", "builtin_tools"),
    "sharegpt": ("conversations", "system", "tools"),
    "alpaca": ("instruction", "input", "output", "system", "history"),
}
"""Keys of a record that are read."""

SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""Role by ShareGPT's ``from``; the value of a ``function_call`` is the call as JSON."""

_IGNORED_IN_A_CALL = ("id", "type")


def parse_conversation(
    record: Fields, chat_format: ChatFormat, ignore_keys: Collection[str] = ()
) -> Conversation:
    """The conversation of a record, checked.

    Args:
        record: values by key.
        chat_format: ``auto`` goes by the record's keys, see :data:`MARKS`.
        ignore_keys: keys inside a turn that are passed over.

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
    conversation = _PARSERS[name](fields, frozenset(ignore_keys))
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


def _messages(fields: Fields, ignore_keys: frozenset[str]) -> Conversation:
    known = {"role", "content", "tool_calls", "tool_call_id", "name"} | ignore_keys
    messages = []
    for number, turn in _turns(fields, "messages", known):
        role = turn.get("role")
        role = "tool" if role == "ipython" else role
        if role not in ROLES:
            raise ConversationError(
                "roles out of order",
                f"turn {number} has role {role!r:.80}; known are {', '.join(ROLES)} and ipython",
            )
        call = None
        if turn.get("tool_calls"):
            call = _only_call(number, role, turn["tool_calls"])
        messages.append(Message(role, turn.get("content", ""), call))
    return Conversation(
        _without_empty_system(messages),
        _tools(fields.get("tools")),
        _builtin_tools(fields.get("builtin_tools")),
    )


def _sharegpt(fields: Fields, ignore_keys: frozenset[str]) -> Conversation:
    messages = _system(fields)
    for number, turn in _turns(fields, "conversations", {"from", "value"} | ignore_keys):
        name, value = turn.get("from"), turn.get("value", "")
        if name not in SHAREGPT_ROLES:
            raise ConversationError(
                "roles out of order",
                f"turn {number} is from {name!r:.80}; known are {', '.join(SHAREGPT_ROLES)}",
            )
        if name == "function_call":
            call = _call(number, _json(f"turn {number} (function_call)", value))
            messages.append(Message("assistant", "", call))
        else:
            messages.append(Message(SHAREGPT_ROLES[name], value))
    return Conversation(_without_empty_system(messages), _tools(fields.get("tools")))


def _alpaca(fields: Fields, ignore_keys: frozenset[str]) -> Conversation:
    del ignore_keys  # there are no turns with keys of their own
    messages = _system(fields)
    for number, pair in enumerate(_list(fields.get("history", []), "history")):
        pair = _list(pair, f"history {number}")
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
    return Conversation(_without_empty_system(messages))


_PARSERS: dict[str, Callable[[Fields, frozenset[str]], Conversation]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
}


def _turns(fields: Fields, key: str, known: Collection[str]) -> list[tuple[int, Fields]]:
    """Turns by number, their null values left out."""
    turns: list[tuple[int, Fields]] = []
    for number, turn in enumerate(_list(fields[key], key)):
        if not isinstance(turn, Mapping):
            kind = type(turn).__name__
            raise ConversationError("wrong type", f"turn {number} is a {kind}, not an object")
        given = {name: value for name, value in turn.items() if value is not None}
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ConversationError(
                "unknown keys",
                f"turn {number} has unknown keys {unknown}, known are {sorted(known)}: name those "
                "that mean nothing here with --ignore-keys",
            )
        turns.append((number, given))
    if not turns:
        raise ConversationError("no assistant turn", f"{key} is empty")
    return turns


def _system(fields: Fields) -> list[Message]:
    text = fields.get("system", "")
    return [Message("system", text)] if text else []


def _without_empty_system(messages: list[Message]) -> tuple[Message, ...]:
    """Many sets have an empty system turn in every conversation: it says nothing."""
    first = messages[0]
    is_empty = first.role == "system" and isinstance(first.content, str)
    if is_empty and not first.content.strip():
        return tuple(messages[1:])
    return tuple(messages)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConversationError("wrong type", f"{name} is a {type(value).__name__}, not a list")
    return value


def _json(place: str, value: Any) -> Any:
    """A value that may have been written as JSON: parquet has no mappings of free keys."""
    if not isinstance(value, str):
        return value
    try:
        found = json_value(value.encode())
    except ValueError as error:  # not UTF-8, not JSON, too much of it
        raise ConversationError("bad tool call", f"{place} is not JSON: {error}") from error
    if reason := value_error(found):
        raise ConversationError("bad tool call", f"{place} has {reason}")
    return found


def _tools(value: Any) -> tuple[Fields, ...] | None:
    if not value:
        return None
    tools = _list(_json("tools", value), "tools")
    for tool in tools:
        if not isinstance(tool, Mapping):
            raise ConversationError(
                "bad tool call", f"a tool is a {type(tool).__name__}: {tool!r:.80}"
            )
    return tuple(tools) or None


def _builtin_tools(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = _list(_json("builtin_tools", value), "builtin_tools")
    if not all(isinstance(name, str) for name in names):
        raise ConversationError("bad tool call", f"builtin_tools are names, not {names!r:.80}")
    return tuple(names)


def _only_call(number: int, role: str, calls: Any) -> ToolCall:
    calls = _list(_json(f"turn {number}: tool_calls", calls), "tool_calls")
    if role != "assistant":
        raise ConversationError("bad tool call", f"turn {number} ({role}) has tool_calls")
    if len(calls) != 1:
        raise ConversationError(
            "bad tool call",
            f"turn {number} has {len(calls)} tool calls: Llama 3.1 makes one in a turn",
        )
    return _call(number, calls[0])


def _call(number: int, call: Any) -> ToolCall:
    """``{"function": {"name": ..., "arguments": {...}}}`` or what is inside."""
    place = f"turn {number}: tool call"
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        others = {k for k, v in call.items() if v is not None} - {"function", *_IGNORED_IN_A_CALL}
        if others:
            raise ConversationError("bad tool call", f"{place} has unknown keys {sorted(others)}")
        call = call["function"]
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise ConversationError("bad tool call", f"{place} has no name: {str(call)[:80]}")
    others = {key for key, value in call.items() if value is not None} - {"name", "arguments"}
    if others:
        raise ConversationError("bad tool call", f"{place} has unknown keys {sorted(others)}")
    arguments = _json(f"{place}: arguments", call.get("arguments") or {})
    if not isinstance(arguments, Mapping):
        kind = type(arguments).__name__
        raise ConversationError("bad tool call", f"{place}: arguments are a {kind}, not an object")
    return ToolCall(call["name"], dict(arguments))
