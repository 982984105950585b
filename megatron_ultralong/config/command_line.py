"""The configuration that a command line asks for, by flags that are its fields."""

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Any

import tyro
from tyro import constructors

from megatron_ultralong.config.flags import (
    Flag,
    check_dashes,
    check_one_folder,
    flags_of,
    given_flags,
)
from megatron_ultralong.config.parser_errors import parser_errors
from megatron_ultralong.program import fields, names
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.quantity import Unit


def parse(config_class: Any, program: str, words: Sequence[str], default: Any = None) -> Any:
    """The configuration that a command line asks for, every number in its range.

    Fields of the dataclasses in ``config_class`` are flags without prefix; they change ``default``.

    Raises:
        InputError: a flag is unknown, required and missing, or its text is no value in its range.
        SystemExit: help was asked for (0).
    """
    flags = flags_of(config_class, default)
    check_dashes(words, {name for flag in flags for name in flag.names})
    check_one_folder(words, "--data-path")
    texts = {flag.names[0] for flag in flags if flag.is_text}
    words = names.whole_names(words, lambda flag: flag not in texts)
    _check_given_once(words, flags)
    units = {flag.names[0]: flag.unit for flag in flags if flag.unit}
    several = {flag.names[0] for flag in flags if flag.takes_several}
    words = _plain_numbers(words, units, several)
    with parser_errors(flags, program, words):
        config = tyro.cli(
            config_class,
            prog=program,
            args=list(words),
            default=tyro.MISSING_NONPROP if default is None else default,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
            registry=_without_texts(),
        )
    fields.check_fields(config, given_flags(words))
    fields.check_texts(config)
    return config


def _check_given_once(words: Sequence[str], flags: Sequence[Flag]) -> None:
    """Raise InputError where a flag of several values is there twice: one would lose its own.

    Of one value the last counts, so that a script's own may be changed behind them.
    """
    given = [word.split("=")[0].replace("_", "-") for word in words]
    for flag in flags:
        name = flag.names[0]
        if name.startswith("--") and flag.takes_several and given.count(name) > 1:
            raise InputError(
                f"{name} is given {given.count(name)} times; only the last values would be used: "
                f"write all of them behind one {name}, with spaces between them"
            )


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


def _without_texts() -> constructors.ConstructorRegistry:
    """Tyro's rules, with no text above groups of flags.

    The help has its own (:mod:`megatron_ultralong.cli.help`), and tyro would read their source for
    it, a third of the time that a command line takes.
    """
    registry = constructors.ConstructorRegistry()
    is_asking = False

    def rule(info: constructors.StructTypeInfo) -> constructors.StructConstructorSpec | None:
        nonlocal is_asking
        if is_asking or not dataclasses.is_dataclass(info.type):
            return None
        is_asking = True
        try:  # tyro's own rule
            spec = constructors.ConstructorRegistry.get_struct_spec(info)
        finally:
            is_asking = False
        if not isinstance(spec, constructors.StructConstructorSpec):
            return None
        return dataclasses.replace(spec, fields=tuple(map(_without_text, spec.fields)))

    registry.struct_rule(rule)
    return registry


def _without_text(field: constructors.StructFieldSpec) -> constructors.StructFieldSpec:
    """The field, where it is a group of flags without the text above them."""
    is_group = dataclasses.is_dataclass(fields.without_marks(field.type))
    return dataclasses.replace(field, helptext="") if is_group else field
