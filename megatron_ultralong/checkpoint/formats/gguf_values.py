"""Values of a GGUF file's metadata, with the types that llama.cpp wants them in."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal, NamedTuple

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.optional import optional_package

Kind = Literal["UINT32", "INT32", "FLOAT32", "BOOL", "STRING", "ARRAY"]
_MOST = 2**32 - 1


class Value(NamedTuple):
    """A value, and the name that :class:`gguf.GGUFValueType` has for its type."""

    kind: Kind
    value: Any


Values = dict[str, Value]
"""By their keys."""


def uint32(value: int) -> Value:
    """A count.

    Raises:
        InputError: it has more than 32 bits.
    """
    if value > _MOST:
        raise InputError(f"{value} is beyond {_MOST}, the largest number that GGUF has room for")
    return Value("UINT32", value)


def int32(value: int) -> Value:
    """A signed number."""
    return Value("INT32", value)


def float32(value: float) -> Value:
    """A number, which the file rounds to 32 bits."""
    return Value("FLOAT32", float(value))


def boolean(value: bool) -> Value:
    """True or false."""
    return Value("BOOL", value)


def string(value: str) -> Value:
    """A text."""
    return Value("STRING", value)


def array(value: list[Any]) -> Value:
    """Texts, or whole numbers of 32 bits."""
    return Value("ARRAY", value)


def library() -> ModuleType:
    """The package ``gguf``.

    Raises:
        InputError: it is not installed.
    """
    module: ModuleType = optional_package("gguf", "--format gguf")
    return module
