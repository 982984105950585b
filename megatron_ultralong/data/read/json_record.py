"""Dataclasses from JSON, with the type of every value looked at."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Record = TypeVar("Record")


class RecordError(ValueError):
    """A value that is not what its field holds; the message names the field and both."""


def record_of(kind: type[Record], values: Any, where: str = "") -> Record:
    """The dataclass ``kind`` whose fields are the keys of ``values``, nested ones too.

    ``list``, ``dict`` with text as keys, ``X | None`` and ``Any`` are known besides plain values.

    Raises:
        RecordError: a field is missing, unknown, or of another type.
    """
    if not isinstance(values, Mapping):
        raise RecordError(f"{where or 'the whole'} is {_shown(values)}, not an object")
    hints = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in (*sorted(fields - set(values)), *sorted(set(values) - fields)):
        state = "is missing" if name in fields else "is not known"
        raise RecordError(f"field {where}{name} {state}")
    return kind(**{name: _value(hints[name], values[name], where + name) for name in fields})


def _value(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        options = [option for option in arguments if option is not types.NoneType]
        return None if value is None else _value(options[0], value, where)
    if dataclasses.is_dataclass(kind):
        return record_of(kind, value, f"{where}.")  # type: ignore[arg-type]
    if origin is list and isinstance(value, list):
        return [_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    plain = origin or kind
    accepted = (int, float) if plain is float else plain
    if not isinstance(value, accepted) or (isinstance(value, bool) and plain is not bool):
        raise RecordError(f"field {where} is {_shown(value)}, where {plain.__name__} is held")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
