"""The flags of a configuration: names, descriptions, limits and defaults, from its fields."""

import dataclasses
import enum
import itertools
import re
import types
from collections.abc import Collection, Container, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from megatron_ultralong.program import fields
from megatron_ultralong.program.errors import InputError, slips
from megatron_ultralong.program.quantity import Unit

_KINDS = {bool: "", int: "N", float: "X", str: "TEXT"}


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag, or an argument without one."""

    field: str
    """Name in the configuration: ``data_path``."""
    usage: str
    """``--data-path TEXT``, ``--search, --no-search``, or ``SRC`` for one without flag."""
    description: str
    is_required: bool = False
    limits: str = ""
    """Of a number: ``at least 1``."""
    default: str = ""
    """For people; empty where there is nothing to show."""
    block: str = ""
    """Description of the block of options that it is in."""
    unit: Unit | None = None
    """What texts of its numbers may end with: ``512K``."""
    is_text: bool = False
    """Its values are texts; those of every other one name something, or are numbers."""

    @property
    def names(self) -> list[str]:
        """``["--search", "--no-search"]``, or ``["SRC"]``."""
        words = self.usage.replace(",", "").split()
        return [word for word in words if word.startswith("--")] or words[:1]

    @property
    def takes_several(self) -> bool:
        """Whether several values stand behind it."""
        return self.usage.endswith("...")

    @property
    def text(self) -> str:
        """Description, limits and default."""
        limits = f" [{self.limits}]" if self.limits else ""
        default = f" (default: {self.default})" if self.default else ""
        return f"{self.description}{limits}{default}".strip()


def flags_of(cls: Any, default: Any = None, block: str = "", *, strict: bool = True) -> list[Flag]:
    """The flags of a configuration, as its parser has them.

    Fields of the dataclasses in ``cls`` are flags without prefix. ``block`` describes the block
    that they are in; ``strict``: what is marked as required is.
    """
    cls = cls if default is None else type(default)
    hints = get_type_hints(cls, include_extras=True)
    texts, numbers = fields.field_docstrings(cls), {one.name: one for one in fields.numbers_of(cls)}
    found, inner = [], []
    for field in dataclasses.fields(cls):
        hint, value = hints[field.name], _default(field, default)
        kind = fields.without_marks(hint)
        if dataclasses.is_dataclass(kind):
            needed = strict and fields.mark_of(hint, fields.NothingRequired) is None
            its = None if value is dataclasses.MISSING else value
            title = _first_sentence(kind.__doc__ if its is None else type(its).__doc__)
            inner += flags_of(kind, its, title, strict=needed)
            continue
        required = value is dataclasses.MISSING
        required |= strict and not value and fields.mark_of(hint, fields.Required) is not None
        number = numbers.get(field.name)
        limits = number.range if number else None
        unit = number.unit if number else None
        found.append(
            Flag(
                field.name,
                _usage(field.name, hint, kind),
                texts.get(field.name, "") + (f" {unit.help}." if unit else ""),
                required,
                limits.text() if limits else "",
                "" if required else _shown(value),
                block,
                unit,
                fields.mark_of(hint, fields.Text) is not None,
            )
        )
    return found + inner


def given_flags(words: Sequence[str]) -> list[str]:
    """Flags on a command line, each once: ``--seq-length=4 -> --seq-length``."""
    return list(dict.fromkeys(word.split("=")[0] for word in words if word.startswith("--")))


_OTHER_DASHES = re.compile(
    "(?!--[^-])[-\N{HYPHEN}-\N{HORIZONTAL BAR}\N{MINUS SIGN}]{1,3}([A-Za-z][^=]*)"
)
"""A name behind another number or kind of dashes than two: editors make one of two."""


def check_dashes(words: Sequence[str], known: Container[str]) -> None:
    """Check that no flag was copied with another dash: it would be a value, a prompt.

    Raises:
        InputError: one of the ``known`` flags was.
    """
    for word in words:
        found = _OTHER_DASHES.match(word)
        flag = f"--{found[1].replace('_', '-')}" if found else ""
        if flag in known:
            raise InputError(f"{word!r} does not begin with two hyphens: type {flag}")


def check_one_folder(words: Sequence[str], flag: str, others: Collection[str] = ()) -> None:
    """Check that a flag has one folder of rows, and no blend as Megatron-LM has them.

    Args:
        words: of the command line.
        flag: that takes the folder.
        others: words that may stand behind it: names of recipes.

    Raises:
        InputError: it has several, or weights and paths: ``0.3 a 0.7 b``.
    """
    for place, word in enumerate(words):
        name, is_joined, value = word.partition("=")
        if name.replace("_", "-") != flag:
            continue
        values = [value] if is_joined else []
        behind = itertools.takewhile(lambda word: not word.startswith("--"), words[place + 1 :])
        values += [word for word in behind if word not in others]
        if len(values) == 2 and any(_is_nearly(values[1], other) for other in others):
            continue  # the name of a recipe, misspelt: its own check says so
        if len(values) > 1:
            raise InputError(
                f"{flag} {' '.join(values)}: it takes one folder, and no blend: `ultralong "
                "prepare` (for sft `prepare chat`) writes several sources, one --source "
                "NAME=FILES for each, to the rows of one folder; their shares are those of their "
                "tokens: for a smaller share name fewer files of a source"
            )


def _is_nearly(word: str, name: str) -> bool:
    """Whether a word is a name with slips, or one end of it: ``1m`` of ``llama3.1-8b-1m``."""
    is_end = len(word) > 1 and (name.startswith(word) or name.endswith(word))
    return is_end or slips(word.lower(), name) <= 2


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
    flag = fields.flag_of(name, hint)
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
    if get_origin(kind) is tuple:
        return f"{_metavar(get_args(kind)[0])} ..."
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if len(options := fields.options_of(kind)) > 1:
        return "|".join(_metavar(one) for one in options if one is not types.NoneType)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "|".join(one.name for one in kind)
    return _KINDS.get(kind, "PATH")


def _first_sentence(docstring: str | None) -> str:
    return " ".join((docstring or "").split("\n\n")[0].split()).rstrip(".")
