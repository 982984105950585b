"""Keys of a record that stand beside its turns, and say what of them may be learnt.

What a turn may say, a record may say of all its turns: that they are not learnt, that they are
about pictures, that there are functions to call. A record whose key is passed over would be learnt
as if it said nothing.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from megatron_ultralong.data.read import conversation as chat
from megatron_ultralong.data.read.conversation_turns import OLD_FORM, WEIGHTS, plain_number

VERDICTS = ("label", "kto_tag")
"""Keys that say of the answer, with false, that it is not to be learnt: KTO's data have one, in TRL
and in LLaMA-Factory."""

MEDIA = ("image", "images", "video", "videos", "audio", "audios")
"""Keys with what the texts are about and do not say: those of LLaVA, TRL, ms-swift and
LLaMA-Factory."""


class _Rule(NamedTuple):
    """Values of some keys that are refused."""

    keys: tuple[str, ...]
    is_refused: Callable[[Any], bool]
    problem: chat.Problem
    text: str
    """Of a key and its value."""


_NOTHING = ("", "[]", "{}", "null")
"""Texts that stand for nothing, as columns of a table have them."""


def _plain(key: str, value: Any) -> Any:
    """A truth or number that a column of a table has as a text: ``"False" -> False``.

    Texts of ``label`` are classes of any kind.
    """
    if not isinstance(value, str) or key == "label":
        return value
    text = value.strip().lower()
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return value


def _is_no(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and value == 0


def _says_something(value: Any) -> bool:
    """Whether an object has a value, be it false; ``{"a": None, "b": []} -> False``."""
    if isinstance(value, Mapping):
        return any(inner is not None and inner not in ("", []) for inner in value.values())
    return bool(value) and value not in _NOTHING


def _is_named(value: Any) -> bool:
    """Whether there is a picture: ``[None]`` and ``{"bytes": None, "path": ""}`` name none."""
    if isinstance(value, Mapping):
        return any(map(_is_named, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return any(map(_is_named, value))
    return bool(value) and value not in _NOTHING


_LEAVE_OUT = "leave those out with jq -c 'select(.{key} != {value})', or pass over the key, if it "
_NOT_LEARNT = "a record has {key} {value}, as a turn that is not learnt: " + _LEAVE_OUT
_RULES = (
    _Rule(
        VERDICTS,
        lambda value: value is False,
        "bad weight",
        "a record has {key} {value}, as one of KTO's whose answer is not to be learnt: "
        + _LEAVE_OUT,
    ),
    _Rule(
        ("weight", "train", "training"),
        _is_no,
        "bad weight",
        _NOT_LEARNT,
    ),
    _Rule(  # a number may be what a model's loss was
        ("loss",),
        lambda value: value is False,
        "bad weight",
        _NOT_LEARNT,
    ),
    _Rule(
        ("weight",),
        lambda value: isinstance(value, (int, float)) and value != 1,
        "bad weight",
        "a record has {key} {value}, and each conversation is learnt once, with weight 1: write "
        "more or fewer of them, or pass over the key, if it ",
    ),
    _Rule(
        MEDIA,
        _is_named,
        "no text",
        "a record has {key}, and nothing but text can be written: leave those out with jq -c "
        """'select([.{key} | .. | strings, numbers | select(IN("", "[]", "{}", "null") | not)] """
        "== [])', or pass over the key, if it ",
    ),
    _Rule(
        ("chat_template_kwargs",),
        _says_something,
        "beyond the template",
        "a record has {key} {value}, and --chat-template writes every conversation in one way: "
        "pass over the key, if that is meant, or it ",
    ),
    _Rule(
        ("functions",),
        _says_something,
        "unknown keys",
        f"a record has {{key}}, {OLD_FORM}; or pass over the key, if it ",
    ),
)
assert {*WEIGHTS} <= {key for rule in _RULES for key in rule.keys}

KEYS = tuple(dict.fromkeys(key for rule in _RULES for key in rule.keys))
"""All of them, each of which ``--ignore-keys`` passes over."""


def check_beside_turns(record: Mapping[str, Any], ignore_keys: Collection[str]) -> None:
    """Refuse a record that says of its turns what is not done here.

    Raises:
        ConversationError: it does; the message has key, value and what to do.
    """
    for rule in _RULES:
        for key in rule.keys:
            value = plain_number(record.get(key))
            if value is None or key in ignore_keys or not rule.is_refused(_plain(key, value)):
                continue
            text = json.dumps(value) if isinstance(value, (bool, str)) else repr(value)
            told = rule.text.replace("{key}", key).replace("{value}", text[:40])
            raise chat.ConversationError(
                rule.problem, f"{told}means something else, with --ignore-keys {key}"
            )
