"""Configurations from plain nested dicts, as ``dataclasses.asdict`` makes them for files."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from megatron_ultralong.program import fields
from megatron_ultralong.program.errors import InputError, not_known, shown
from megatron_ultralong.program.names import local_name

Config = TypeVar("Config")

_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?", re.ASCII)
"""A text that YAML would take for a number if no quotes were around it."""
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def from_dict(config_class: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """A config from plain nested dicts; fields that are absent keep their default.

    Every value is of its field's type, and every number in its range.

    ``where`` is the file that they are from, for messages.

    Raises:
        InputError: a key that the class does not have, a field without default that is missing, or
            a value that its field cannot hold.
    """
    return _from_dict(config_class, values, where or config_class.__name__, "")


def _from_dict(config_class: type[Config], values: Any, where: str, path: str) -> Config:
    place = f"{where}: {path}" if path else where
    if not isinstance(values, Mapping):
        raise InputError(f"{place} must be a block of keys and values, not {shown(values)}")
    hints = get_type_hints(config_class, include_extras=True)
    known = {field.name: field for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in values if key not in known)
    if unknown:
        name = unknown[0]
        if block := _block_of(name, hints):
            raise InputError(
                f"{place}: key {name!r} belongs in the block {block!r}: write it there, indented, "
                f"as `{block}: {{{name}: ...}}`"
            )
        raise InputError(f"{place}: {not_known('key', name, sorted(known))}")
    absent = [
        name
        for name, field in known.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if absent:
        raise InputError(f"{place}: missing keys {absent}")
    cls: Any = config_class
    numbers = {number.name: number for number in fields.numbers_of(cls)}
    arguments = {}
    for key, value in values.items():
        at, number = f"{path}.{key}" if path else key, numbers.get(key)
        if number and number.unit and isinstance(value, str):
            value = _plain(number, value, f"{where}: {at}")
        if isinstance(value, str) and fields.mark_of(hints[key], fields.Text) is None:
            value = local_name(value)
        arguments[key] = _typed(hints[key], value, where, at)
        if number:
            fields.check_number(config_class, number, arguments[key], where=where, path=at)
    try:
        return config_class(**arguments)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _block_of(name: str, hints: Mapping[str, Any]) -> str | None:
    """The block of a configuration that has such a key: flags have none, and files do."""
    kinds = ((block, kind) for block, hint in hints.items() for kind in fields.options_of(hint))
    return next(
        (
            block
            for block, kind in kinds
            if dataclasses.is_dataclass(kind)
            and name in {field.name for field in dataclasses.fields(kind)}
        ),
        None,
    )


def _plain(number: fields.Number, text: str, name: str) -> str | int:
    """``512K -> 524288``; a plain number in quotes stays a text, which is refused."""
    plain = number.unit.plain(text, name) if number.unit else text
    return text if plain == text else int(plain)


def _typed(hint: Any, value: Any, where: str, path: str) -> Any:
    """The value as its field holds it: lists as tuples, and paths.

    Raises:
        InputError: it is of another type.
    """
    options = fields.options_of(fields.without_marks(hint))
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(option, type):
            return _from_dict(option, value, where, path)
        if get_origin(option) is tuple and isinstance(value, list | tuple):
            item = get_args(option)[0]
            return tuple(_typed(item, one, where, f"{path}[{n}]") for n, one in enumerate(value))
        if option is Path and isinstance(value, str):
            return Path(value)
        if _is_a(option, value):
            return value
    wanted = " or ".join(_named(option) for option in options)
    hint_of_quotes = ""
    if isinstance(value, str) and (int in options or float in options):
        hint_of_quotes = ": write it in digits alone, such as 1000 or 1e-5"
        if _NUMBER.fullmatch(value):
            hint_of_quotes = ": write it without quotes"
    raise InputError(f"{where}: {path} must be {wanted}, not {shown(value)}{hint_of_quotes}")


def _is_a(option: Any, value: Any) -> bool:
    if option is Any:
        return True
    if get_origin(option) is Literal:
        return isinstance(value, str) and value in get_args(option)
    if isinstance(value, bool) and option in (int, float):
        return False
    kinds = int | float if option is float else option
    return isinstance(option, type) and isinstance(value, kinds)


def _named(option: Any) -> str:
    """For people: ``one of 'none', 'block'``."""
    if get_origin(option) is Literal:
        return f"one of {', '.join(map(repr, get_args(option)))}"
    if get_origin(option) is tuple:
        return f"a list, each item {_named(get_args(option)[0])}"
    if option is type(None):
        return "nothing"
    return _KINDS.get(option, getattr(option, "__name__", str(option)))


def with_fields(config: Config, **values: Any) -> Config:
    """The same with other values of fields, by the names of their flags, whichever block has them.

    ``with_fields(run, seq_length=8192, train_iters=10)``: the first is ``run.data``'s.
    """
    changes, rest = {}, dict(values)
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        inner = getattr(config, field.name)
        if field.name in rest:
            changes[field.name] = rest.pop(field.name)
        elif dataclasses.is_dataclass(inner) and not isinstance(inner, type):
            names = {each.name for each in dataclasses.fields(inner)} & set(rest)
            if names:
                its = {name: rest.pop(name) for name in names}
                changes[field.name] = dataclasses.replace(inner, **its)
    assert not rest, f"{type(config).__name__} has no {', '.join(rest)}"
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def flat_fields(value: Any, prefix: str = "") -> dict[str, object]:
    """Fields of a nested dataclass by dotted name, so that a difference has a name."""
    if not dataclasses.is_dataclass(value):
        return {prefix: value}
    found: dict[str, object] = {}
    for field in dataclasses.fields(value):
        name = f"{prefix}.{field.name}" if prefix else field.name
        found.update(flat_fields(getattr(value, field.name), name))
    return found
