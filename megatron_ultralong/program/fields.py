"""Fields of configurations: the docstring of each, and what it has to hold.

``lr: Annotated[float, Range(0, 1)]`` holds for a flag, for a key of a file and for a value that
another program passes. The command line checks what it has parsed before it imports what works
with it; configurations check themselves too. tests/test_ranges.py fails by name for a number
without a range.

``load: Annotated[str, Required("a Megatron checkpoint")] = ""`` is marked in the help, and may not
be left empty. A field without default needs no mark: the command line asks for it.

``prompt: Annotated[tuple[str, ...], TEXT] = ()`` holds text, not the name of a file, which may be
any bytes. Bytes of the command line that are no text in its locale come as halves of characters; a
tokenizer would read something else for each of them.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import numbers
import textwrap
import types
from collections.abc import Collection
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from megatron_ultralong.program.errors import InputError, shown
from megatron_ultralong.program.quantity import Unit


@functools.cache
def field_docstrings(cls: Any) -> dict[str, str]:
    """The docstring under every field of a dataclass, on one line each; those it inherits too.

    A field without one, or a class without source, is left out.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _own_docstrings(base)
    return found


def _own_docstrings(cls: Any) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except OSError:
        return {}
    body = cast(ast.ClassDef, tree.body[0]).body
    found = {}
    for statement, following in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            found[statement.target.id] = " ".join(str(following.value.value).split())
    return found


INT32 = 2**31 - 1
"""Largest count: lengths of rows stand in 32 bits in Megatron's index, and so do sizes in NCCL."""
UINT32 = 2**32 - 1
"""Largest seed, as numpy takes them."""
INT64 = 2**63 - 1
_FIRST_ABSURD = 1000
"""Bounds from here on have no meaning but that nobody wants more."""
YEAR = 525_600
"""In minutes: timers of the operating system overflow where a number of minutes has no bound."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers that a field takes; NaN and infinities are in none.

    In a tuple it is the range of each item. Of an optional field or one that may be a word, it is
    the range of the numbers.
    """

    least: float | None = None
    """Smallest number; instead of ``above``."""
    most: float = INT32
    """Largest number."""
    above: float | None = None
    """Every number is larger."""
    below: float | None = None
    """Every number is smaller; instead of ``most``."""
    or_zero: bool = False
    """0 is another choice, apart from the rest."""
    rule: str = ""
    """Why; the field's docstring says it where this is empty."""

    def holds(self, value: float) -> bool:
        """Whether a number is inside."""
        if self.or_zero and value == 0:
            return True
        return (
            (isinstance(value, numbers.Integral) or math.isfinite(value))
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (value < self.below if self.below is not None else value <= self.most)
        )

    def text(self, value: float | None = None) -> str:
        """``at least 1``, ``between 0 and 20``, ``above 0 and at most 1``.

        A bound that is only against the absurd is left out, unless ``value`` is beyond it.
        """
        is_bounded = self.most < _FIRST_ABSURD or (value is not None and value > self.most)
        zero = "0, or " if self.or_zero else ""
        if self.least is not None and self.below is None and is_bounded:
            return f"{zero}between {self.least} and {self.most}"
        lower = f"at least {self.least}" if self.above is None else f"above {self.above}"
        if self.below is not None:
            return f"{zero}{lower} and below {self.below}"
        return f"{zero}{lower} and at most {self.most}" if is_bounded else f"{zero}{lower}"

    def way_out(self, value: float) -> str:
        """What to give instead of ``value``: ``1 or more``."""
        if self.below is not None and value >= self.below:
            return f"a number below {self.below}"
        if value > self.most:
            return f"{self.most} or less"
        if self.above is not None:
            return f"a number above {self.above}"
        return f"{self.least} or more"


@dataclasses.dataclass(frozen=True)
class Number:
    """A field of numbers: its range, and what else it may hold."""

    name: str
    range: Range | None
    is_whole: bool
    words: tuple[str, ...] = ()
    """Instead of a number."""
    is_optional: bool = False
    is_tuple: bool = False
    unit: Unit | None = None
    """What texts of it may end with: ``512K``."""


def check_ranges(config: Any, prefix: str = "", where: str = "") -> None:
    """Check every number of a configuration, and of those that it holds.

    ``prefix`` stands before the names of flags (``ultralong_``); ``where`` is the file that it is
    from, if it is not a command line.

    Raises:
        InputError: one is not in its range; the message has its value, the range and the fix.
    """
    cls = type(config)
    for number in numbers_of(cls):  # type: ignore[arg-type]  # mypy: no class can be hashed
        check_number(cls, number, getattr(config, number.name), prefix=prefix, where=where)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            check_ranges(value, prefix, where)


def check_number(
    cls: Any, number: Number, value: Any, *, prefix: str = "", where: str = "", path: str = ""
) -> None:
    """Check the value of one field of ``cls``.

    ``path`` is that of the field in the file, with dots.

    Raises:
        InputError: see :func:`check_ranges`.
    """
    if number.range is None or (value is None and number.is_optional) or value in number.words:
        return
    name = f"{prefix}{path or number.name}"
    at = f"{where}: {name}" if where else name
    for one in value if number.is_tuple and isinstance(value, list | tuple) else (value,):
        kind = numbers.Integral if number.is_whole else numbers.Real
        is_number = isinstance(one, kind) and not isinstance(one, bool)
        if not is_number:
            wanted = "a whole number" if number.is_whole else "a number"
            words = "".join(f" or {word!r}" for word in number.words)
            raise InputError(f"{at} must be {wanted}{words}, not {shown(one)}")
        if not number.range.holds(one):
            way_out = number.range.way_out(one)
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{at} must be {number.range.text(one)}, not {shown(one)}: "
                f"{_rule(cls, number)}; {f'write {way_out}' if where else f'use {flag} {way_out}'}"
            )


def _rule(cls: Any, number: Number) -> str:
    if number.range is not None and number.range.rule:
        return number.range.rule
    sentence = field_docstrings(cls).get(number.name, "").split(". ")[0].rstrip(".")
    if not sentence:
        return "it is a range of this project"
    first = sentence.split()[0]
    return sentence[0].lower() + sentence[1:] if first[1:].islower() else sentence


def mark_of(hint: Any, kind: type[Any]) -> Any:
    """The mark of a class in an ``Annotated`` type, or None."""
    return next((one for one in getattr(hint, "__metadata__", ()) if isinstance(one, kind)), None)


def without_marks(hint: Any) -> Any:
    """``Annotated[int, Range(1)] -> int``."""
    return hint.__origin__ if hasattr(hint, "__metadata__") else hint


def options_of(kind: Any) -> tuple[Any, ...]:
    """The types that a field may be of: ``int | None -> (int, NoneType)``, ``int -> (int,)``."""
    is_union = get_origin(kind) in (Union, types.UnionType)
    return get_args(kind) if is_union else (kind,)


@functools.cache
def numbers_of(cls: Any) -> tuple[Number, ...]:
    """The fields of a dataclass that hold numbers, without those of the dataclasses in it."""
    hints = get_type_hints(cls, include_extras=True)
    found = (_number(field.name, hints[field.name]) for field in dataclasses.fields(cls))
    return tuple(number for number in found if number is not None)


def _number(name: str, hint: Any) -> Number | None:
    kind = without_marks(hint)
    options, is_tuple = options_of(kind), get_origin(kind) is tuple
    if is_tuple:
        options = get_args(kind)
    if int not in options and float not in options:
        return None
    words = [word for one in options if get_origin(one) is Literal for word in one.__args__]
    return Number(
        name,
        mark_of(hint, Range),
        is_whole=float not in options,
        words=tuple(words),
        is_optional=type(None) in options,
        is_tuple=is_tuple,
        unit=mark_of(hint, Unit),
    )


@dataclasses.dataclass(frozen=True)
class Required:
    """The field has to be given: it may not be empty or 0."""

    what: str
    """What it is, for the message: ``a Megatron checkpoint``."""


@dataclasses.dataclass(frozen=True)
class NothingRequired:
    """Of a block of fields: the verb that holds it works without those marked in it."""


def flag_of(name: str, hint: Any) -> str:
    """How users give a field: ``--data-path``, or the name of an argument without flag: ``RUN``."""
    metadata = getattr(hint, "__metadata__", ())
    metavar = next((one.metavar for one in metadata if getattr(one, "metavar", None)), "")
    if any("Positional" in str(one) for one in metadata):
        return str(metavar).split()[0]
    own = next((one.name for one in metadata if isinstance(getattr(one, "name", None), str)), "")
    return f"--{own or name.replace('_', '-')}"


def check_required(config: Any, given: Collection[str] = ()) -> None:
    """Check that what has to be given is, in a configuration and the blocks that it holds.

    A number that is 0 on the command line, which has the flags ``given``, is given, and has a
    range.

    Raises:
        InputError: a field marked :class:`Required` is empty.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        required = mark_of(hint, Required)
        flag = flag_of(field.name, hint)
        if required and not value and not (value == 0 and flag in given):
            raise InputError(f"{flag} is needed: {required.what}")
        if dataclasses.is_dataclass(value) and not mark_of(hint, NothingRequired):
            check_required(value, given)


def check_fields(config: Any, given: Collection[str] = ()) -> None:
    """Check that what has to be given is, and that every number is in its range.

    Raises:
        InputError: see :func:`check_required` and :func:`check_ranges`.
    """
    check_required(config, given)
    check_ranges(config)


@dataclasses.dataclass(frozen=True)
class Text:
    """The field is read character by character."""


TEXT = Text()


def check_texts(config: Any) -> None:
    """Check the texts of a configuration, and of the blocks that it holds.

    Raises:
        InputError: one is no Unicode; the message has flag and text.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_texts(value)
        elif mark_of(hints[field.name], Text):
            for text in value if isinstance(value, tuple) else (value or "",):
                _check_text(text, flag_of(field.name, hints[field.name]))


def _check_text(text: str, flag: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{flag} {shown(text)} is not UTF-8 at character {error.start}, and is read as text: "
            "type it in a terminal of UTF-8, with LC_ALL=C.UTF-8 where `locale` names another"
        ) from error
