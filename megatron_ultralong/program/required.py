"""Fields of configurations that have an empty default and still have to be given.

``load: Annotated[str, Required("a Megatron checkpoint")] = ""`` is marked in the help, and
:func:`check_required` refuses a configuration without it. A field without default needs no mark:
the command line asks for it.
"""

import dataclasses
import typing
from collections.abc import Collection
from typing import Any

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import mark_of


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
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        required = mark_of(hint, Required)
        flag = flag_of(field.name, hint)
        if required and not value and not (value == 0 and flag in given):
            raise InputError(f"{flag} is needed: {required.what}")
        if dataclasses.is_dataclass(value) and not mark_of(hint, NothingRequired):
            check_required(value, given)
