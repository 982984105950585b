"""The help of a verb: examples, what has to be given, common flags, then the rest.

It is made from the fields of the verb's options, which the parser's flags are made from too, and
needs nothing else: no parser is built, and nothing is imported but the options.
"""

import dataclasses
import enum
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from megatron_ultralong.cli.guides import GUIDES, Guide
from megatron_ultralong.program.ending import PROGRAM
from megatron_ultralong.program.fields import field_docstrings, numbers_of
from megatron_ultralong.program.required import NothingRequired, Required, flag_of, mark_of

_WIDEST = 100
"""Columns: longer lines are hard to read."""
_KINDS = {bool: "", int: "N", float: "X", str: "TEXT"}


@dataclasses.dataclass(frozen=True)
class Flag:
    """A line of the help, and the text under it."""

    field: str
    """Name in the configuration: ``data_path``."""
    usage: str
    """``--data-path TEXT``, ``--search, --no-search``, or ``SRC`` for one without flag."""
    text: str
    is_required: bool
    block: str
    """Description of the block of options that it is in."""


def flags_of(cls: Any, default: Any = None, block: str = "", *, strict: bool = True) -> list[Flag]:
    """The flags of a configuration, as its parser has them.

    Args:
        cls: a dataclass; fields of those in it are flags without prefix.
        default: the configuration that the flags change, if there is one.
        block: description of the block of options, for those in it.
        strict: what is marked as required is.
    """
    cls = cls if default is None else type(default)
    hints = typing.get_type_hints(cls, include_extras=True)
    texts, ranges = field_docstrings(cls), {one.name: one.range for one in numbers_of(cls)}
    found, inner = [], []
    for field in dataclasses.fields(cls):
        hint, value = hints[field.name], _default(field, default)
        kind = _without_marks(hint)
        if dataclasses.is_dataclass(kind):
            needed = strict and mark_of(hint, NothingRequired) is None
            its = None if value is dataclasses.MISSING else value
            title = _first_sentence(kind.__doc__ if its is None else type(its).__doc__)
            inner += flags_of(kind, its, title, strict=needed)
            continue
        required = value is dataclasses.MISSING
        required |= strict and not value and mark_of(hint, Required) is not None
        text = texts.get(field.name, "")
        its_range = ranges.get(field.name)
        text += f" [{its_range.text()}]" if its_range else ""
        shown = "" if required else _shown(value)
        text += f" (default: {shown})" if shown else ""
        usage = _usage(field.name, hint, kind)
        found.append(Flag(field.name, usage, text.strip(), required, block))
    return found + inner


def help_text(
    name: str,
    cls: Any,
    default: Any,
    recipes: Iterable[str],
    runs: Iterable[Any] = (),
    *,
    with_all: bool = False,
) -> str:
    """The help of a verb.

    Args:
        name: of the verb.
        cls: its options.
        default: what a recipe or a file gives, if one is named.
        recipes: that it begins with, if any.
        runs: what they give; a default in which they differ is the recipe's.
        with_all: describe every flag; else the rest by name alone.
    """
    width = min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)
    guide, recipes = GUIDES[name], list(recipes)
    flags = _with_recipes(flags_of(cls, default), [flags_of(cls, run) for run in runs])
    required = [flag for flag in flags if flag.is_required]
    common = _in_order(flags, guide)
    rest = [flag for flag in flags if flag not in required and flag not in common]
    lines = [*_usages(name, recipes, required), "", *_paragraphs(cls.__doc__, width), ""]
    lines += ["Examples:", *(f"  {line}" for text in guide.examples for line in text.split("\n"))]
    if recipes:
        lines += ["", *textwrap.wrap(f"Recipes: {', '.join(recipes)}", width, **_HANGING)]
    lines += _section("Required:", required, width)
    own = [Flag(flag, flag, text, False, "") for flag, text in guide.of_the_command_line]
    lines += _section("Common:" if guide.common else "Flags:", own + common, width)
    if not guide.common or with_all:
        for block in dict.fromkeys(flag.block for flag in rest):
            part = [flag for flag in rest if flag.block == block]
            title = f"{block}:" if block else "Other flags:" if guide.common else "Flags:"
            lines += _section(title, part, width)
    elif rest:
        lines += ["", f"More flags, described by `{PROGRAM} {name} --help-all`:"]
        names = " ".join(flag.usage.split()[0].rstrip(",") for flag in rest)
        lines += textwrap.wrap(
            names, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        )
    return "\n".join(lines) + "\n"


def _with_recipes(flags: list[Flag], of_runs: list[list[Flag]]) -> list[Flag]:
    """The flags, with ``(default: the recipe's)`` where a recipe has another value."""
    found = []
    for flag in flags:
        texts = {one.text for run in of_runs for one in run if one.field == flag.field}
        if texts - {flag.text} and not flag.is_required:
            text = re.sub(r" \(default: [^()]*\)$", "", flag.text)
            flag = dataclasses.replace(flag, text=f"{text} (default: the recipe's)")
        found.append(flag)
    return found


_HANGING: dict[str, Any] = {"subsequent_indent": "  ", "break_on_hyphens": False}


def _usages(name: str, recipes: list[str], required: list[Flag]) -> Iterator[str]:
    needed = "".join(f" {flag.usage}" for flag in required)
    if not recipes:
        yield f"usage: {PROGRAM} {name}{needed} [flags]"
        return
    yield f"usage: {PROGRAM} {name} RECIPE{needed} [flags]"
    yield f"       {PROGRAM} {name} --config FILE [flags]"


def _paragraphs(docstring: str | None, width: int) -> Iterator[str]:
    for number, paragraph in enumerate((docstring or "").split("\n\n")):
        if number:
            yield ""
        yield from textwrap.wrap(" ".join(paragraph.split()), width, break_on_hyphens=False)


def _in_order(flags: list[Flag], guide: Guide) -> list[Flag]:
    """The common ones that are not required, in the order of the guide."""
    named = {flag.field: flag for flag in flags if not flag.is_required}
    return [named[field] for field in guide.common if field in named]


def _section(title: str, flags: list[Flag], width: int) -> Iterator[str]:
    if not flags:
        return
    yield ""
    yield title
    for flag in flags:
        yield f"  {flag.usage}{'  (required)' if flag.is_required else ''}"
        indent = " " * 8
        yield from textwrap.wrap(
            flag.text,
            width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )


def _default(field: dataclasses.Field[Any], configuration: Any) -> Any:
    if configuration is not None:
        return getattr(configuration, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _shown(value: Any) -> str:
    """A default for people; empty where there is nothing to show."""
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _usage(name: str, hint: Any, kind: Any) -> str:
    metadata = getattr(hint, "__metadata__", ())
    flag = flag_of(name, hint)
    if kind is bool:
        return f"{flag}, --no-{flag.removeprefix('--')}"
    metavar = next((one.metavar for one in metadata if getattr(one, "metavar", None)), None)
    if not flag.startswith("--"):
        return metavar or flag
    if metavar is None:
        metavar = _metavar(kind)
    return f"{flag} {metavar}"


def _metavar(kind: Any) -> str:
    """``N`` for a whole number, ``a|b`` for a choice, ``TEXT ...`` for several."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return f"{_metavar(options[0])} ..."
    if origin is Literal:
        return "|".join(map(str, options))
    if origin in (typing.Union, types.UnionType):
        return "|".join(_metavar(one) for one in options if one is not types.NoneType)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "|".join(one.name for one in kind)
    return _KINDS.get(kind, "PATH")


def _without_marks(hint: Any) -> Any:
    return getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint


def _first_sentence(docstring: str | None) -> str:
    return " ".join((docstring or "").split("\n\n")[0].split()).rstrip(".")
