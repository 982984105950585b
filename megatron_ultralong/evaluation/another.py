"""What tells an evaluation from a finished one, in words for the user."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from megatron_ultralong.evaluation.commands import benchmark_of
from megatron_ultralong.program.difference import value_difference

_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{4,}\b")
_CONTENT = "content of "
_WORDS = {
    "checkpoint": ("the name of its checkpoint", "was"),
    "engine": ("what ran its checkpoint", "was"),
    "rotary": ("how its checkpoint turns positions", "was"),
    "tokenizer": ("the tokenizer of its checkpoint", "was"),
    "trained positions": ("the trained positions of its checkpoint", "were"),
    "version of prompts": ("the version of its prompts", "was"),
    "lm_eval": ("the version of lm_eval", "was"),
    "wonderwords": ("the version of wonderwords", "was"),
    "benchmark": ("its benchmark", "was"),
}
"""Of what no flag says by itself."""


def first_of(pairs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]], command: Any) -> str:
    """The first difference between what was asked and what is; empty: there is none."""
    for before, after in pairs:
        for key in dict.fromkeys((*after, *before)):
            if before.get(key) != after.get(key):
                return _told(key, before.get(key), after.get(key), command)
    return ""


def _told(key: str, before: Any, after: Any, command: Any) -> str:
    """One part that differs, with both values."""
    name, old, new = value_difference(key, before, after)
    old, new = (_HASH.sub(r"\1", text) for text in (old, new))
    _, config = benchmark_of(command)
    if key.startswith(_CONTENT) and hasattr(config, flag := key.removeprefix(_CONTENT)):
        return _of_files(
            *(flag, getattr(config, flag)), old if before else "", new if after else ""
        )
    if key == "weights":
        loads = " ".join(command.models.load)
        return f"--load {loads} holds other weights than at that time ({old}, now {new})"
    what, verb = _WORDS.get(key, ("", "was"))
    if not what:
        is_flag = hasattr(config, key) or hasattr(command.models, key)
        what = f"--{name.replace('_', '-')}" if is_flag else f"its {name}"
    return f"{what} {verb} {old}, now {'it is' if verb == 'was' else 'they are'} {new}"


def _of_files(flag: str, value: Any, old: str, new: str) -> str:
    """The same of files, which are told by what they hold."""
    paths = " ".join([value] if isinstance(value, str) else value)
    name = f"--{flag.replace('_', '-')}"
    if not old:
        return f"{name} {paths} was not given at that time"
    if not new:
        return f"{name} is not given now, and was at that time ({old})"
    what = "rows" if flag == "data_path" else "contents"
    verb = "holds" if isinstance(value, str) or len(value) == 1 else "hold"
    return f"{name} {paths} {verb} other {what} than at that time ({old}, now {new})"
