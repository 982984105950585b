"""The flags of a configuration: one for each field, with its docstring and its range as help."""

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Annotated, Any

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from megatron_ultralong.config.flags import Flag, flags_of, given_flags
from megatron_ultralong.config.parser_errors import parser_errors
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import Range, check_ranges, numbers_of
from megatron_ultralong.program.names import whole_names
from megatron_ultralong.program.quantity import Unit
from megatron_ultralong.program.required import check_required, flag_of
from megatron_ultralong.program.texts import check_texts


def parse(config_class: Any, program: str, words: Sequence[str], default: Any = None) -> Any:
    """The configuration that a command line asks for, every number in its range.

    Args:
        config_class: a dataclass; fields of those in it are flags without prefix.
        program: and its verb, for the help.
        words: after the verb.
        default: what the flags change.

    Raises:
        InputError: a flag is unknown, required and missing, or its text is no value in its range.
        SystemExit: help was asked for (0).
    """
    words = whole_names(config_class if default is None else type(default), words)
    flags = flags_of(config_class, default)
    _check_dashes(words, flags)
    _check_given_once(words, flags)
    words = _plain_numbers(words, *_units(config_class, default))
    with parser_errors(config_class, program, words, default):
        config = tyro.cli(
            config_class,
            prog=program,
            args=list(words),
            default=tyro.MISSING_NONPROP if default is None else default,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
            registry=_with_ranges(is_help=not {"-h", "--help"}.isdisjoint(words)),
        )
    check_required(config, given_flags(words))
    check_ranges(config)
    check_texts(config)
    return config


_OTHER_DASHES = re.compile(
    "(?!--[^-])[-\N{HYPHEN}-\N{HORIZONTAL BAR}\N{MINUS SIGN}]{1,3}([A-Za-z][^=]*)"
)
"""A name behind another number or kind of dashes than two: editors make one of two."""


def _check_dashes(words: Sequence[str], flags: Sequence[Flag]) -> None:
    """Raise InputError where a flag was copied with another dash: it would be a value, a prompt."""
    known = {name for flag in flags for name in flag.names}
    for word in words:
        found = _OTHER_DASHES.match(word)
        flag = f"--{found[1].replace('_', '-')}" if found else ""
        if flag in known:
            raise InputError(f"{word!r} does not begin with two hyphens: type {flag}")


def _check_given_once(words: Sequence[str], flags: Sequence[Flag]) -> None:
    """Raise InputError where a flag of several values is there twice: one would lose its own.

    Of one value the last counts, so that a script's own may be changed behind them.
    """
    given = [word.split("=")[0].replace("_", "-") for word in words]
    for flag in flags:
        name = flag.names[0]
        if name.startswith("--") and flag.usage.endswith("...") and given.count(name) > 1:
            raise InputError(
                f"{name} is given {given.count(name)} times, and would have the last values alone: "
                f"write all of them behind one {name}, with spaces between them"
            )


def _units(config_class: Any, default: Any) -> tuple[dict[str, Unit], set[str]]:
    """Units of a configuration's flags, by flag, and those flags that take several values."""
    cls: Any = config_class if default is None else type(default)
    hints = typing.get_type_hints(cls, include_extras=True)
    units = [(flag_of(one.name, hints[one.name]), one) for one in numbers_of(cls) if one.unit]
    found = {flag: one.unit for flag, one in units if one.unit}
    several = {flag for flag, one in units if one.is_tuple}
    for field in dataclasses.fields(cls):
        inner = getattr(hints[field.name], "__origin__", hints[field.name])
        if dataclasses.is_dataclass(inner):
            its = _units(inner, None if default is None else getattr(default, field.name))
            found |= its[0]
            several |= its[1]
    return found, several


def _plain_numbers(
    words: Sequence[str], units: Mapping[str, Unit], several: Set[str] = frozenset()
) -> list[str]:
    """A command line with ``512K`` and ``2,048`` behind flags with a unit as plain numbers.

    Behind a flag of one value, what follows that one is not a number: a folder may be named ``1m``.
    """
    found, name = [], ""
    for word in words:
        flag, is_joined, value = word.partition("=")
        if word.startswith("--"):
            name = flag.replace("_", "-")
        unit = units.get(name)
        if unit and is_joined and word.startswith("--"):
            word = f"{flag}={unit.plain(value, name)}"
        elif unit and not word.startswith("--"):
            word = unit.plain(word, name)
        if name not in several and (is_joined or not word.startswith("--")):
            name = ""
        found.append(word)
    return found


def _with_ranges(is_help: bool) -> ConstructorRegistry:
    """Tyro's rules, with the range of each number behind its help: ``Rows in ... [at least 1]``.

    Where no help is asked for, groups of flags have none: tyro would read their source for it, a
    third of the time that a command line takes.
    """
    registry = ConstructorRegistry()
    is_asking = False

    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal is_asking
        if is_asking or not dataclasses.is_dataclass(info.type):
            return None
        is_asking = True
        try:  # tyro's own rule
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            is_asking = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        ranges = {
            number.name: number.range
            for number in numbers_of(info.type)
            if number.range is not None
        }
        fields = [_with_help(field, ranges.get(field.name)) for field in spec.fields]
        if not is_help:
            fields = [_without_text(field) for field in fields]
        return dataclasses.replace(spec, fields=tuple(fields))

    registry.struct_rule(rule)
    return registry


def _with_help(field: StructFieldSpec, its_range: Range | None) -> StructFieldSpec:
    """The field with its range behind its help, and no default shown where that is empty."""
    if its_range is not None:
        field = dataclasses.replace(field, helptext=_with_range(field.helptext, its_range))
    if field.default in ("", ()):
        kind: Any = Annotated[field.type, tyro.conf.arg(help_behavior_hint="")]
        field = dataclasses.replace(field, type=kind)
    return field


def _without_text(field: StructFieldSpec) -> StructFieldSpec:
    """The field, where it is a group of flags without the text above them."""
    kind = typing.get_args(field.type)[0] if hasattr(field.type, "__metadata__") else field.type
    return dataclasses.replace(field, helptext="") if dataclasses.is_dataclass(kind) else field


def _with_range(helptext: Any, its_range: Range) -> Callable[[], str]:
    """Tyro reads docstrings late, when help is asked for."""

    def text() -> str:
        found = helptext() if callable(helptext) else helptext
        return f"{found or ''} [{its_range.text()}]".strip()

    return text
