"""Fields of configurations that hold text, not the name of a file, which may be any bytes.

``prompt: Annotated[tuple[str, ...], TEXT] = ()``. Bytes of the command line that are no text in
its locale come as halves of characters; a tokenizer would read something else for each of them.
"""

import dataclasses
import typing
from typing import Any

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import mark_of, shown
from megatron_ultralong.program.required import flag_of


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


def _check(text: str, flag: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{flag} {shown(text)} is not UTF-8 at character {error.start}, and is read as text: "
            "type it in a terminal of UTF-8, with LC_ALL=C.UTF-8 where `locale` names another"
        ) from error
