"""Turns of a conversation, in OpenAI's keys (``role``, ``content``) or ShareGPT's (``from``,
``value``).

Beside its text a turn of the assistant's may have

* a weight, under one of :data:`WEIGHTS`: 0 or false, and it is read but not learnt. ``weight`` is
  OpenAI's and Mistral's, ``train`` and ``training`` are axolotl's, ``loss`` is ms-swift's;
* its reasoning, under one of :data:`REASONING`, the names that transformers takes for one.
"""

import dataclasses
import decimal
from collections.abc import Mapping
from typing import Any

from megatron_ultralong.data.read import conversation as chat
from megatron_ultralong.data.read.options import Reasoning

WEIGHTS = ("weight", "train", "training", "loss")
"""Keys of a turn that say whether it is learnt."""

_WEIGHTS_OF_ALL = ("train", "training")
"""Of these, those that can ask for another's turn than the assistant's."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a turn with what the assistant thought before it answered."""

SHAREGPT_ROLES: dict[str, chat.Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""Role by ShareGPT's ``from``; the value of a ``function_call`` is the call as JSON."""

OPENAI_ROLES: dict[str, chat.Role] = {
    **{role: role for role in chat.ROLES},
    "developer": "system",
    **{name: SHAREGPT_ROLES[name] for name in ("human", "gpt", "bot", "model")},
    "ipython": "tool",
}
"""Role by ``role``: those of OpenAI and Llama, and what others say instead."""

OLD_FORM = (
    'OpenAI\'s old form: write a call as "tool_calls": [{"function": {"name": ..., "arguments": '
    "...}}], its result as a turn of role tool, and functions as tools"
)
"""What is said of ``function_call``, and of role ``function`` for a result."""

_PART_TYPES = ("text", "input_text", "output_text")

_OPENAI_KEYS = {"role", "content", "tool_calls", "tool_call_id", "name", *WEIGHTS, *REASONING}
_SHAREGPT_KEYS = {"from", "value", *WEIGHTS, *REASONING}


@dataclasses.dataclass(frozen=True)
class TurnOptions:
    """How turns are read."""

    ignore_keys: frozenset[str] = frozenset()
    """Keys that mean nothing here."""
    reasoning: Reasoning = "drop"
    """Whether the assistant's reasoning is left out, or stands before the answer."""
    texts: chat.JsonTexts = dataclasses.field(default_factory=chat.JsonTexts)
    """Reads what is written as JSON; of one record."""


def read_turns(value: Any, name: str, options: TurnOptions) -> list[chat.Message]:
    """The turns of a list, of JSON of a list, or of a list of JSON, under the key ``name``.

    Raises:
        ConversationError: naming the turn, counted from 0.
    """
    texts = options.texts
    value = texts.value(name, value, "wrong type") if isinstance(value, str) else value
    messages = []
    for number, turn in enumerate(chat.list_of(name, value)):
        if isinstance(turn, str):
            turn = texts.value(f"turn {number}", turn, "wrong type")
        chat.require_type(turn, Mapping, f"turn {number} is", ", not an object")
        given = {
            key: inner
            for key, inner in turn.items()
            if inner is not None and key not in options.ignore_keys
        }
        reasoning = _reasoning(number, given, options.reasoning)
        message = _message(number, given, options)
        if message.role == "assistant" and reasoning and options.reasoning == "keep":
            message = _with_reasoning(number, message, reasoning)
        if reasoning:
            message = dataclasses.replace(message, has_reasoning=True)
        messages.append(message)
    if not messages:
        raise chat.ConversationError("no assistant turn", f"{name} is empty")
    return messages


def _message(number: int, turn: Mapping[str, Any], options: TurnOptions) -> chat.Message:
    if "from" in turn or "value" in turn:
        return _sharegpt_message(number, turn, options)
    _check_keys(number, turn, _OPENAI_KEYS)
    role = _role(f"turn {number} has role", turn.get("role"), OPENAI_ROLES)
    call = _only_call(number, role, turn.get("tool_calls"), options.texts)
    content = content_of(f"turn {number} ({role})", role, turn.get("content", ""), options)
    return chat.Message(role, content, call, _is_learnt(number, role, turn))


def _sharegpt_message(number: int, turn: Mapping[str, Any], options: TurnOptions) -> chat.Message:
    _check_keys(number, turn, _SHAREGPT_KEYS)
    name, value = turn.get("from"), turn.get("value", "")
    role = _role(f"turn {number} is from", name, SHAREGPT_ROLES)
    is_learnt = _is_learnt(number, role, turn)
    if name == "function_call":
        return chat.Message(role, "", _call_of(number, value, options.texts), is_learnt)
    return chat.Message(
        role, content_of(f"turn {number} ({name})", role, value, options), None, is_learnt
    )


def _role(begin: str, name: Any, known: Mapping[str, chat.Role]) -> chat.Role:
    if not isinstance(name, str) or name not in known:
        text = f"{begin} {name!r:.80}; known are {', '.join(known)}"
        if name == "function":
            text = f"{begin} 'function', {OLD_FORM}"
        raise chat.ConversationError("roles out of order", text)
    return known[name]


def _check_keys(number: int, turn: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(turn) - known)
    if "function_call" in unknown:
        raise chat.ConversationError("unknown keys", f"turn {number} has function_call, {OLD_FORM}")
    if unknown:
        raise chat.ConversationError(
            "unknown keys",
            f"turn {number} has unknown keys {unknown}, known are {sorted(known)}: name those "
            "that mean nothing here with --ignore-keys",
        )


def _only_call(number: int, role: str, calls: Any, texts: chat.JsonTexts) -> chat.ToolCall | None:
    """The call of a turn, None for an empty list.

    Raises:
        ConversationError: it is none, there are several, or the turn is not the assistant's.
    """
    calls = texts.value_or_none(f"turn {number}: tool_calls", calls)
    if calls is None or not chat.list_of("tool_calls", calls):
        return None
    if role != "assistant":
        raise chat.ConversationError("bad tool call", f"turn {number} ({role}) has tool_calls")
    if len(calls) != 1:
        raise chat.ConversationError(
            "bad tool call",
            f"turn {number} has {len(calls)} tool calls: --chat-template llama3.1, which alone "
            "writes calls, has one in a turn; write each in a turn of its own, before its result",
        )
    return _call_of(number, calls[0], texts)


def _call_of(number: int, call: Any, texts: chat.JsonTexts) -> chat.ToolCall:
    """``{"function": {"name": ..., "arguments": {...}}}`` or what is inside, or JSON of either.

    Raises:
        ConversationError: it has no name, other keys, or arguments that are no object.
    """
    place = f"turn {number}: tool call"
    call = texts.value(place, call)
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        _refuse_others(place, call, {"function", "id", "type", "index"})
        call = call["function"]
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise chat.ConversationError("bad tool call", f"{place} has no name: {str(call)[:80]}")
    _refuse_others(place, call, {"name", "arguments"})
    arguments = call.get("arguments")
    arguments = texts.value(f"{place}: arguments", arguments) if arguments != "" else None
    arguments = {} if arguments is None else arguments
    before = f"{place}: what stands under arguments is"
    chat.require_type(arguments, Mapping, before, ", not an object", "bad tool call")
    return chat.ToolCall(call["name"], dict(arguments))


def _refuse_others(place: str, call: Mapping[str, Any], known: set[str]) -> None:
    others = {key for key, value in call.items() if value is not None} - known
    if others:
        raise chat.ConversationError("bad tool call", f"{place} has unknown keys {sorted(others)}")


def content_of(place: str, role: str, content: Any, options: TurnOptions) -> Any:
    """The text of a turn, its parts one after the other; of a tool's result any JSON.

    Nothing is put between parts, as in the templates that know them (Llama 3.2 Vision's, Qwen2-VL's
    and others). A tool's result in a list is data, which Llama 3.1's template writes as JSON.

    Raises:
        ConversationError: a part is not a text.
    """
    if role == "tool":
        chat.check_json(place, content, "wrong type")
        return content
    if not isinstance(content, list):
        return content
    ignored = options.ignore_keys
    return "".join(_part(f"{place}: part {i}", part, ignored) for i, part in enumerate(content))


def _part(place: str, part: Any, ignored: frozenset[str]) -> str:
    chat.require_type(part, Mapping, f"{place} is", ", not an object with a text")
    kind = part.get("type", "text")
    if kind not in _PART_TYPES:
        raise chat.ConversationError(
            "no text", f"{place} is of type {kind!r:.80}: nothing but text can be written"
        )
    known = {"type", "text", "cache_control", *ignored}
    others = [key for key, value in part.items() if value is not None and key not in known]
    if others:
        raise chat.ConversationError(
            "no text",
            f"{place} has {others[0]!r:.80} beside its text: pass over what means nothing with "
            "--ignore-keys",
        )
    chat.require_type(part.get("text"), str, f"{place} has a text of type", ", not a text")
    return str(part["text"])


def plain_number(value: Any) -> Any:
    """A number of a table's column of decimals as any other: ``Decimal("0.0") -> 0.0``."""
    return float(value) if isinstance(value, decimal.Decimal) else value


def _is_learnt(number: int, role: str, turn: Mapping[str, Any]) -> bool:
    """Whether a turn's weight, if it has one, lets it be learnt."""
    found: dict[str, bool] = {}
    for key in WEIGHTS:
        if key not in turn:
            continue
        value = plain_number(turn[key])
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise chat.ConversationError(
                "bad weight",
                f"turn {number} has {key} {value!r:.80}: a turn is learnt (1, true) or not (0, "
                "false)",
            )
        found[key] = bool(value)
        if role != "assistant" and value and key in _WEIGHTS_OF_ALL:
            raise chat.ConversationError(
                "bad weight",
                f"turn {number} ({role}) has {key} {value!r}, and the assistant's turns alone are "
                f"learnt: leave the key out, or pass over it with --ignore-keys {key}",
            )
    if len(set(found.values())) > 1:
        raise chat.ConversationError(
            "bad weight", f"turn {number} has weights that differ: {found}"
        )
    return all(found.values())


def _reasoning(number: int, turn: Mapping[str, Any], wanted: Reasoning) -> str:
    """The reasoning of a turn; empty where it has none.

    Raises:
        ConversationError: it is not a text, or it is to be kept and two keys have two.
    """
    found: dict[str, str] = {}
    for key in REASONING:
        value = turn.get(key, "")
        chat.require_type(value, str, f"turn {number} has {key} of type")
        if value.strip():
            found[key] = value
    if wanted == "keep" and len(set(found.values())) > 1:
        raise chat.ConversationError(
            "unknown keys",
            f"turn {number} has {' and '.join(map(repr, found))}, which are not the same: pass "
            "over those that are not the reasoning with --ignore-keys",
        )
    return next(iter(found.values()), "")


def _with_reasoning(number: int, message: chat.Message, reasoning: str) -> chat.Message:
    """The turn as Qwen 3's template and DeepSeek R1 write it: the reasoning before the answer."""
    if message.tool_call is not None:
        raise chat.ConversationError(
            "bad tool call",
            f"turn {number} (assistant) has reasoning beside its tool call, which the template "
            "leaves out: so does --reasoning drop",
        )
    if not isinstance(message.content, str):
        return message  # the check says what is wrong with it
    text = f"<think>\n{reasoning.strip()}\n</think>\n\n{message.content.lstrip()}"
    return dataclasses.replace(message, content=text)
