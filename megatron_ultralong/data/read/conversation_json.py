"""Values of a record that may be written as JSON: parquet has no mappings of free keys."""

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
from megatron_ultralong.data.read.conversation import ConversationError, Problem

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
