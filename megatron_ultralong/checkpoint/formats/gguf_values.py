"""Values of a GGUF file's metadata, with the types that llama.cpp wants them in."""

import functools
import math
import struct
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeVar

from megatron_ultralong.program.errors import InputError, shown
from megatron_ultralong.program.optional import optional_package

Kind = Literal["UINT32", "INT32", "FLOAT32", "BOOL", "STRING", "ARRAY"]


class Value(NamedTuple):
    """A value, and the name that :class:`gguf.GGUFValueType` has for its type."""

    kind: Kind
    value: Any


Values = dict[str, Value]
"""By their keys."""


def _integer(kind: Kind, least: int, most: int, value: int) -> Value:
    """A whole number.

    Raises:
        InputError: it is out of its range.
    """
    if value > most:
        raise InputError(
            f"{shown(value)} is beyond {most}, the largest number that GGUF has room for"
        )
    if value < least:
        raise InputError(f"{shown(value)} is below {least}, the smallest number that GGUF has")
    return Value(kind, value)


uint32 = functools.partial(_integer, "UINT32", 0, 2**32 - 1)
"""A count."""
int32 = functools.partial(_integer, "INT32", -(2**31), 2**31 - 1)
"""A signed number."""
boolean = functools.partial(Value, "BOOL")
"""True or false."""


def float32(value: float) -> Value:
    """A number, which the file rounds to 32 bits.

    Raises:
        InputError: it is beyond such numbers, infinite or none.
    """
    try:
        number = float(value)
        if not math.isfinite(struct.unpack("<f", struct.pack("<f", number))[0]):
            raise OverflowError
    except OverflowError:
        raise InputError(
            f"{shown(value)} is not a number of 32 bits, which GGUF has: "
            "write one between -3.4e38 and 3.4e38"
        ) from None
    return Value("FLOAT32", number)


def string(value: str) -> Value:
    """A text.

    Raises:
        InputError: it has half a character, which UTF-8 has no bytes for.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{value[:60]!a} has half a character, which GGUF's UTF-8 cannot write "
            f"({error.reason}): write it again"
        ) from error
    return Value("STRING", value)


def array(value: list[Any]) -> Value:
    """Texts, or whole numbers of 32 bits; at least one, for GGUF states the type of the first.

    Raises:
        InputError: it is empty, or one is no such text or number.
    """
    if not value:
        raise InputError("GGUF has no empty arrays: leave the key out")
    for one in value:
        string(one) if isinstance(one, str) else int32(one)
    return Value("ARRAY", value)


Item = TypeVar("Item", str, int, float)


def named(where: str, kind: Callable[[Item], Value], value: Item) -> Value:
    """``kind(value)``, whose error says ``where`` it is from.

    Raises:
        InputError: GGUF has no such value.
    """
    try:
        return kind(value)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def library() -> ModuleType:
    """The package ``gguf``.

    Raises:
        InputError: it is not installed.
    """
    module: ModuleType = optional_package("gguf", "--format gguf")
    return module
