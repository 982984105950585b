"""Fields of configurations that hold text, not the name of a file, which may be any bytes.

``prompt: Annotated[tuple[str, ...], TEXT] = ()``. Bytes of the command line that are no text in
its locale come as halves of characters; a tokenizer would read something else for each of them.
"""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import shown
from megatron_ultralong.program.required import flag_of, mark_of


@dataclasses.dataclass(frozen=True)
class Text:
    """The field is read character by character."""


TEXT = Text()


def check_texts(config: Any) -> None:
    """Check the texts of a configuration, and of the blocks that it holds.

    Raises:
        InputError: one is no Unicode; the message has flag and text.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_texts(value)
        elif mark_of(hints[field.name], Text):
            for text in value if isinstance(value, tuple) else (value or "",):
                _check(text, flag_of(field.name, hints[field.name]))


def text_flags(config_class: Any) -> set[str]:
    """Flags of the fields that hold text: of every other one a value names something."""
    hints, found = typing.get_type_hints(config_class, include_extras=True), set()
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        inner = getattr(hint, "__origin__", hint)
        if dataclasses.is_dataclass(inner):
            found |= text_flags(inner)
        elif mark_of(hint, Text):
            found.add(flag_of(field.name, hint))
    return found


def check_not_empty(config_class: Any, words: Sequence[str]) -> None:
    """Refuse an empty word where a name belongs: it would be no folder, or the current one.

    A shell writes one for ``"$RUN"`` where ``RUN`` is not set: a run would train and save nothing.

    Args:
        config_class: a dataclass, with others in it.
        words: of the command line.

    Raises:
        InputError: with the flag.
    """
    texts, flag = text_flags(config_class), ""
    for word in words:
        if word.startswith("--"):
            flag = word.partition("=")[0].replace("_", "-")
        if (word == "" or word == f"{word.partition('=')[0]}=") and flag not in texts:
            what = f"{flag} {word!r}" if not word.startswith("--") else word
            raise InputError(
                f"{what.strip()} is empty, and must name something: a variable of the shell that "
                "is not set makes it so; set it, or leave the flag out"
            )


def _check(text: str, flag: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{flag} {shown(text)} is not UTF-8 at character {error.start}, and is read as text: "
            "type it in a terminal of UTF-8, with LC_ALL=C.UTF-8 where `locale` names another"
        ) from error
