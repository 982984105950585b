"""What the parser of flags refuses, as one message of this program.

tyro draws boxes of many lines. Its releases from 1.0.15 or so tell a hook what is wrong before
they do; the module is private, so it is probed, and without it the boxes stay.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import field_docstrings, shown
from megatron_ultralong.program.not_known import nearest
from megatron_ultralong.program.required import flag_of

_CLOSE = 0.75
"""Least similarity of a flag that was probably meant."""
_NUMBERS = {
    "invalid literal for int() with base 10: ": "a whole number",
    "could not convert string to float: ": "a number",
    "Could not find valid parse for arguments: ": "of the kind in its help",
}
"""Beginnings of what Python and tyro say of a text, and what was wanted."""


@contextlib.contextmanager
def parser_errors(config_class: Any, program: str, default: Any = None) -> Iterator[None]:
    """Raise what tyro refuses inside as an InputError.

    Args:
        config_class: whose fields are flags.
        program: and its verb: ``ultralong pretrain``.
        default: the configuration that the flags change, if there is one.

    Raises:
        InputError: a flag is unknown, missing, or has no value of its kind.
    """

    def refuse(event: Any) -> None:
        cls = config_class if default is None else type(default)
        text = _text(event, _flags(cls, default))
        if text:
            raise InputError(f"{text}; see `{program} --help`")

    with _hooked(refuse):
        yield


def _hooked(hook: Callable[[Any], None]) -> contextlib.AbstractContextManager[Any]:
    try:
        register = importlib.import_module("tyro._errors").on_parse_error
    except (ImportError, AttributeError):
        return contextlib.nullcontext()
    return typing.cast(contextlib.AbstractContextManager[Any], register(hook))


def _text(event: Any, flags: dict[str, str]) -> str:
    """Of an event of tyro; empty for one that is not known here, which tyro then tells."""
    kind = type(event).__name__
    if kind == "UnrecognizedArgs":
        return _not_known(event.tokens, flags)
    if kind == "MissingArgs":
        parts = [_not_known(event.unrecognized_tokens, flags)] if event.unrecognized_tokens else []
        names = [_name(one.arg) for one in event.missing_arguments]
        parts += [f"{name} is needed{_what(flags.get(name))}" for name in names]
        return "; ".join(parts)
    if kind == "InvalidChoice":
        return _no_choice(_name(event.argument), event.value, event.choices)
    if kind == "BadValue":
        name = _name(event.argument)
        if event.offending_value is None:
            return f"{name} needs a value{_what(flags.get(name))}"
        return f"{name} takes no value, and {shown(event.offending_value)} follows it"
    if kind == "InstantiationFailure" and event.argument is not None:
        return _name(event.argument) + _no_value(" ".join(str(event.message).split()))
    return ""


def _not_known(tokens: Sequence[str], flags: dict[str, str]) -> str:
    """``--seq-len is not known; perhaps you meant --seq-length``; words alone where no flag is."""
    wrong = [token.split("=")[0] for token in tokens if token.startswith("-")]
    if not wrong:
        return f"{' '.join(map(shown, tokens))}: no flag takes it"
    texts = []
    for flag in dict.fromkeys(wrong):
        near = _nearest_flag(flag, flags)
        texts.append(f"{flag} is not known" + (f"; perhaps you meant {near}" if near else ""))
    return "; ".join(texts)


def _nearest_flag(flag: str, flags: Iterable[str]) -> str | None:
    """Also the one that it is an end or a beginning of: ``--iters -> --train-iters``."""
    plain = flag.lower().replace("_", "-")
    close = difflib.get_close_matches(plain, flags, n=1, cutoff=_CLOSE)
    name = plain.lstrip("-")
    close += [one for one in flags if one.endswith(f"-{name}") or one.startswith(f"--{name}-")]
    return close[0] if close else None


def _no_value(reason: str) -> str:
    """What Python says of a text that is no number, in plain words."""
    for begin, wanted in _NUMBERS.items():
        if reason.startswith(begin):
            return f" must be {wanted}, not {reason.removeprefix(begin)}"
    return f": {reason}"


def _no_choice(name: str, value: str, choices: Sequence[str]) -> str:
    near = nearest(value, choices)
    meant = f"; perhaps you meant {near}" if near else ""
    return f"{name} {shown(value)} is not known{meant}; known: {', '.join(choices)}"


def _name(argument: Any) -> str:
    """Of tyro's description of an argument: its flag, or the word in its place."""
    if argument.is_positional():
        return str(argument.lowered.metavar)
    return str(max(argument.lowered.name_or_flags, key=len))


def _what(text: str | None) -> str:
    """The first sentence of a flag's description, behind a colon."""
    sentence = (text or "").split(". ")[0].rstrip(".")
    return f": {sentence}" if sentence else ""


def _flags(cls: Any, default: Any) -> dict[str, str]:
    """The flags of a configuration and of those in it, and their descriptions."""
    hints, found = typing.get_type_hints(cls, include_extras=True), {}
    texts = field_docstrings(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        kind = getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint
        value = getattr(default, field.name, None)
        if dataclasses.is_dataclass(kind):
            found |= _flags(kind if value is None else type(value), value)
            continue
        flag = flag_of(field.name, hint)
        text = texts.get(field.name, "")
        found[flag] = text
        if kind is bool and flag.startswith("--"):
            found[f"--no-{flag[2:]}"] = text
    return found
