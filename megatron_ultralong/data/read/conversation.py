"""A conversation as every chat template takes it, and what makes one fit to train on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from megatron_ultralong.data.read import record
from megatron_ultralong.program.errors import named

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)

Problem = Literal[
    "unreadable",
    "unknown format",
    "unknown keys",
    "wrong type",
    "no text",
    "bad weight",
    "roles out of order",
    "empty turn",
    "bad tool call",
    "no assistant turn",
    "beyond the template",
]
"""What can be wrong with a conversation; the names under which they are counted."""


class ConversationError(record.BadRecordError):
    """A conversation that cannot be trained on; its message says why, and ``problem`` counts it."""

    def __init__(self, problem: Problem, message: str) -> None:
        super().__init__(message)
        self.problem: Problem = problem

    @property
    def reason(self) -> str:
        """For messages, after the problem."""
        return f"{self.problem}: {self}"


def require_type(
    value: Any,
    kind: type | tuple[type, ...],
    before: str,
    after: str = "",
    problem: Problem = "wrong type",
) -> None:
    """Refuse a value of another type; the message: ``{before} TYPE{after}``, ``... is a TYPE...``.

    Raises:
        ConversationError: it is of another.
    """
    if not isinstance(value, kind):
        name = type(value).__name__
        name = named(name) if before.endswith(" is") else name
        raise ConversationError(problem, f"{before} {name}{after}")


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A function that the assistant calls, instead of a text."""

    name: str
    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn."""

    role: Role
    content: Any
    """Text; of a tool's result text, a mapping or a list."""
    tool_call: ToolCall | None = None
    is_learnt: bool = True
    """False for a turn of the assistant's that is there to be read alone: its weight is 0."""
    has_reasoning: bool = dataclasses.field(default=False, compare=False)
    """The turn had reasoning, kept or left out: it is not a part of what is written."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Turns, and the tools that the assistant may call."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None
    """JSON schemas of functions; None: no tools."""
    builtin_tools: tuple[str, ...] | None = None
    """Llama 3.1's own tools, by name; None: not in its ipython mode."""
    num_cut_at_start: int = 0
    """Turns left out before the first of the user's, see :meth:`learnable`."""
    num_cut_at_end: int = 0
    """Turns left out behind the last of the assistant's."""
    has_reasoning: bool = False
    """The record has the assistant's reasoning, kept or left out."""

    def learnable(self) -> Conversation:
        """The turns that something can be learnt from.

        Behind the assistant's last turn there is nothing to learn; what the assistant says before
        the user has spoken answers nothing, as where a long conversation was cut into several. The
        system turn stays.
        """
        messages = self.messages
        head = int(bool(messages) and messages[0].role == "system")
        first, last = head, len(messages)
        while last > first and messages[last - 1].role in ("user", "tool"):
            last -= 1
        while first < last and messages[first].role in ("assistant", "tool"):
            first += 1
        if first == last:  # nothing is left: said by the check, of the whole
            return self
        return dataclasses.replace(
            self,
            messages=messages[:head] + messages[first:last],
            num_cut_at_start=first - head,
            num_cut_at_end=len(messages) - last,
        )

    def check(self) -> None:
        """Check the order of the roles and that no turn is empty.

        The order: ``system`` at most once and first; then ``user`` and ``assistant`` in turn; a
        ``tool`` turn follows an assistant's call and is followed by the assistant; the last turn
        is the assistant's.

        Raises:
            ConversationError: naming the turn, counted from 0.
        """
        roles = [message.role for message in self.messages]
        if "assistant" not in roles:
            raise ConversationError("no assistant turn", "no turn is the assistant's to train on")
        if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
            raise ConversationError(
                "no assistant turn", "no turn of the assistant's follows one of the user's"
            )
        last: Message | None = None
        for number, message in enumerate(self.messages, start=self.num_cut_at_start):
            allowed = _after(last)
            if message.role not in allowed:
                place = f"after {last.role!r}" if last else "at the beginning"
                raise ConversationError(
                    "roles out of order",
                    f"turn {number} is {message.role!r} {place}, not "
                    f"{' or '.join(map(repr, allowed))}",
                )
            _check_content(number, message)
            last = message
        assert last is not None
        if last.role != "assistant":
            raise ConversationError(
                "roles out of order",
                f"the last turn is {last.role!r}, not 'assistant': nothing after the "
                "assistant's last turn can be trained on",
            )


def _after(last: Message | None) -> Sequence[Role]:
    """Roles that may follow a turn."""
    if last is None:
        return ("system", "user")
    if last.role == "assistant":
        return ("tool",) if last.tool_call else ("user",)
    return ("user",) if last.role == "system" else ("assistant",)


def _check_content(number: int, message: Message) -> None:
    place = f"turn {number} ({message.role})"
    if message.tool_call is not None:
        if message.content:
            raise ConversationError(
                "bad tool call",
                f"{place} has a text beside its tool call, which the template leaves out: "
                f"{str(message.content)[:40]!r}",
            )
        return
    if message.role == "tool":
        others = ", not a text, an object or a list: write it as a text"
        require_type(message.content, (str, Mapping, list), f"{place} has content of type", others)
        return
    require_type(message.content, str, f"{place} has content of type", ", not a text")
    if not message.content or message.content.isspace():
        raise ConversationError("empty turn", f"{place} is empty")
    if error := record.text_error(message.content):
        raise ConversationError("unreadable", f"{place} has {error}")


_PLAIN = (str, int, float, bool, type(None))
_SMALL = 1 << 16


class JsonTexts:
    """Reads the texts of JSON of one record, in as much memory for all as for one.

    A line of 80 MiB may have many, each of as much JSON as is read at once.
    """

    def __init__(self) -> None:
        self._left = record.MAX_JSON_BYTES

    def value_or_none(self, place: str, value: Any) -> Any:
        """The same, and None for what stands for nothing: no text, and a list of nothing.

        Raises:
            ConversationError: see :meth:`value`.
        """
        return None if value is None or value in ("", []) else self.value(place, value)

    def value(self, place: str, value: Any, problem: Problem = "bad tool call") -> Any:
        """A value, or what is written in a text of JSON: ``'{"a": 1}' -> {"a": 1}``.

        Raises:
            ConversationError: a text that is not JSON or too much of it, a value that JSON has not.
        """
        if not isinstance(value, str):
            check_json(place, value, problem)
            return value
        try:
            found = self._read(value)
        except record.TooLargeError as error:
            raise ConversationError(problem, f"{place} cannot be read: {error}") from error
        except ValueError as error:  # not UTF-8, not JSON
            raise ConversationError(
                problem, f"{place} is a text that is not JSON: {error}, in {value[:40]!r}"
            ) from error
        if reason := record.value_error(found):
            raise ConversationError(problem, f"{place} has {reason}")
        return found

    def _read(self, text: str) -> Any:
        data = text.encode()
        self._left -= len(data) if len(data) <= _SMALL else record.bytes_outside_strings(data)
        if self._left < 0:
            raise record.TooLargeError(
                f"the texts of JSON here have more than {record.MAX_JSON_BYTES:,} bytes around "
                "their own texts, the most that is read of a record"
            )
        return record.json_value(data)


def check_json(place: str, value: Any, problem: Problem) -> None:
    """Refuse what a parquet file may hold and JSON not: times, bytes, decimals, other keys.

    Raises:
        ConversationError: naming the type.
    """
    if reason := record.value_error(value):
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


def list_of(place: str, value: Any) -> list[Any]:
    """A list.

    Raises:
        ConversationError: it is none.
    """
    require_type(value, list, f"{place} is", ", not a list")
    return list(value)
