"""The help of a verb: examples, what has to be given, common flags, then the rest.

It is made from the fields of the verb's options, which the parser's flags are made from too, and
needs nothing else: no parser is built, and nothing is imported but the options.
"""

import dataclasses
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from megatron_ultralong.cli.guides import DRY_RUN, GUIDES, RANKS, Guide
from megatron_ultralong.cli.verbs import VERBS, TrainingVerb
from megatron_ultralong.config.flags import Flag, flags_of
from megatron_ultralong.config.recipes import FOR_WHOM
from megatron_ultralong.program.ending import PROGRAM

_WIDEST = 100
"""Columns: longer lines are hard to read."""


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

    ``runs`` are what ``recipes`` give: a default in which they differ is the recipe's. Without
    ``with_all`` the rest is there by name alone.
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
        lines += ["", "Recipes:", *_recipe_lines(recipes, width)]
    lines += _section("Required:", required, width)
    words = [DRY_RUN] * isinstance(VERBS[name], TrainingVerb) + [RANKS] * VERBS[name].is_for_ranks
    own = [Flag(flag, flag, text) for flag, text in words]
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
    """The flags, with the default "the recipe's" where a recipe has another value."""
    found = []
    for flag in flags:
        defaults = {one.default for run in of_runs for one in run if one.field == flag.field}
        if defaults - {flag.default} and not flag.is_required:
            flag = dataclasses.replace(flag, default="the recipe's")
        found.append(flag)
    return found


def _recipe_lines(recipes: list[str], width: int) -> Iterator[str]:
    column = max(map(len, recipes)) + 4
    for name in recipes:
        text, hanging = f"  {name:{column - 2}}{FOR_WHOM[name]}", " " * column
        yield from textwrap.wrap(text, width, subsequent_indent=hanging, break_on_hyphens=False)


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
