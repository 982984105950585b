"""Values inside a conversation: tools, calls of them, and JSON written as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_ultralong.data.read.bounded import (
    MAX_JSON_BYTES,
    TooLargeError,
    bytes_outside_strings,
    json_value,
    value_error,
)
from megatron_ultralong.data.read.conversation import ConversationError, Problem, ToolCall

_PLAIN = (str, int, float, bool, type(None))


_SMALL = 1 << 16


class JsonTexts:
    """Reads the texts of JSON of one record, in as much memory for all as for one.

    A line of 80 MiB may have many, each of as much JSON as is read at once.
    """

    def __init__(self) -> None:
        self._left = MAX_JSON_BYTES

    def value(self, place: str, value: Any, problem: Problem) -> Any:
        """A value, or what is written in a text of JSON: ``'{"a": 1}' -> {"a": 1}``.

        Raises:
            ConversationError: a text that is not JSON or too much of it, a value that JSON has not.
        """
        if not isinstance(value, str):
            check_json(place, value, problem)
            return value
        try:
            found = self._read(value)
        except TooLargeError as error:
            raise ConversationError(problem, f"{place} cannot be read: {error}") from error
        except ValueError as error:  # not UTF-8, not JSON
            raise ConversationError(
                problem, f"{place} is a text that is not JSON: {error}, in {value[:40]!r}"
            ) from error
        if reason := value_error(found):
            raise ConversationError(problem, f"{place} has {reason}")
        return found

    def _read(self, text: str) -> Any:
        data = text.encode()
        self._left -= len(data) if len(data) <= _SMALL else bytes_outside_strings(data)
        if self._left < 0:
            raise TooLargeError(
                f"the texts of JSON here have more than {MAX_JSON_BYTES:,} bytes around their own "
                "texts, the most that is read of a record"
            )
        return json_value(data)


def check_json(place: str, value: Any, problem: Problem) -> None:
    """Refuse what a parquet file may hold and JSON not: times, bytes, decimals, other keys.

    Raises:
        ConversationError: naming the type.
    """
    if reason := value_error(value):
        raise ConversationError(problem, f"{place} has {reason}")
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, Mapping) and all(isinstance(key, str) for key in inner):
            left += inner.values()
        elif isinstance(inner, list):
            left += inner
        elif not isinstance(inner, _PLAIN):
            kind = type(inner).__name__
            raise ConversationError(
                problem, f"{place} has a value of type {kind}, which JSON has not: write it as text"
            )


def list_of(place: str, value: Any, problem: Problem = "wrong type") -> list[Any]:
    """A list.

    Raises:
        ConversationError: it is none.
    """
    if not isinstance(value, list):
        raise ConversationError(problem, f"{place} is a {type(value).__name__}, not a list")
    return value


_IGNORED_IN_A_CALL = ("id", "type", "index")


def tools_of(value: Any, texts: JsonTexts) -> tuple[Mapping[str, Any], ...] | None:
    """JSON schemas of functions: a list, or JSON of one; so is each of them, and its parameters.

    Raises:
        ConversationError: a tool is no object.
    """
    value = texts.value("tools", value, "bad tool call") if value else None
    if value is None:
        return None
    tools = []
    for number, tool in enumerate(list_of("tools", value)):
        tool = texts.value(f"tool {number}", tool, "bad tool call")
        if not isinstance(tool, Mapping):
            raise ConversationError(
                "bad tool call", f"tool {number} is a {type(tool).__name__}: {tool!r:.80}"
            )
        tools.append(_with_schema(number, tool, texts))
    return tuple(tools) or None


def _with_schema(number: int, tool: Mapping[str, Any], texts: JsonTexts) -> Mapping[str, Any]:
    """The tool, its parameters an object where they were written as JSON."""
    function = tool.get("function")
    if isinstance(function, Mapping):
        return {**tool, "function": _with_schema(number, function, texts)}
    parameters = tool.get("parameters")
    if not isinstance(parameters, str):
        return tool
    place = f"tool {number}: parameters"
    return {**tool, "parameters": texts.value(place, parameters, "bad tool call")}


def builtin_tools_of(value: Any, texts: JsonTexts) -> tuple[str, ...] | None:
    """Names of Llama 3.1's own tools: a list, or JSON of one.

    Raises:
        ConversationError: they are no texts.
    """
    value = texts.value("builtin_tools", value, "bad tool call") if value else value
    if value is None:
        return None
    names = list_of("builtin_tools", value)
    if not all(isinstance(name, str) for name in names):
        raise ConversationError("bad tool call", f"builtin_tools are names, not {names!r:.80}")
    return tuple(names)


def only_call(number: int, role: str, calls: Any, texts: JsonTexts) -> ToolCall | None:
    """The call of a turn, None for an empty list.

    Raises:
        ConversationError: it is none, there are several, or the turn is not the assistant's.
    """
    place = f"turn {number}: tool_calls"
    calls = texts.value(place, calls, "bad tool call") if calls else None
    if calls is None or not list_of("tool_calls", calls):
        return None
    if role != "assistant":
        raise ConversationError("bad tool call", f"turn {number} ({role}) has tool_calls")
    if len(calls) != 1:
        raise ConversationError(
            "bad tool call",
            f"turn {number} has {len(calls)} tool calls: Llama 3.1 makes one in a turn",
        )
    return call_of(number, calls[0], texts)


def call_of(number: int, call: Any, texts: JsonTexts) -> ToolCall:
    """``{"function": {"name": ..., "arguments": {...}}}`` or what is inside, or JSON of either.

    Raises:
        ConversationError: it has no name, other keys, or arguments that are no object.
    """
    place = f"turn {number}: tool call"
    call = texts.value(place, call, "bad tool call")
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
    arguments = texts.value(f"{place}: arguments", call.get("arguments") or {}, "bad tool call")
    arguments = {} if arguments is None else arguments  # of the text null
    if not isinstance(arguments, Mapping):
        kind = type(arguments).__name__
        raise ConversationError("bad tool call", f"{place}: arguments are a {kind}, not an object")
    return ToolCall(call["name"], dict(arguments))
