"""Where two values differ, in words, of the texts that Python makes of records."""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

_LONGEST = 2 << 20
"""Characters that are taken apart, which takes up to a hundred times their memory."""
_SHOWN = 200
_LABELS = ("name", "path", "source", "length_bin", "min_length")
"""Fields by which people know a record of a list: ``own=texts/*``."""


def first_difference(name: str, old: str, new: str) -> tuple[str, str, str]:
    """The name of the first part that differs, and both of its values.

    ``inputs``, ``[Input(name='a', num=1)]`` and ``[Input(name='a', num=2)]`` are told as ``inputs,
    a, num``, ``1`` and ``2``. Texts that are no records stay what they are.
    """
    before, now = _parsed(old), _parsed(new)
    if not isinstance(before, dict | list) or not isinstance(now, dict | list):
        return name, _told_text(old), _told_text(new)
    return _first(name, before, now)


def value_difference(name: str, old: Any, new: Any) -> tuple[str, str, str]:
    """The same of JSON values; texts are quoted, truth is told as yes and no."""
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in [*old, *new] if _is_other(key, old, new))
        return value_difference(f"{name}, {key}", old.get(key), new.get(key))
    return _short(name), _quoted(old), _quoted(new)


def _is_other(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a value would be written otherwise: a tuple is a list, 1 and 1.0 are two."""
    texts = [json.dumps(values[key]) if key in values else "" for values in (old, new)]
    return texts[0] != texts[1]


def _quoted(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return repr(_short(value)) if isinstance(value, str) else _words(value)


def _first(name: str, old: Any, new: Any) -> tuple[str, str, str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if old.get(key) != new.get(key):
                return _first(f"{name}, {key}", old.get(key), new.get(key))
    if _is_records(old) and _is_records(new):
        labels, others = [_label(one) for one in old], [_label(one) for one in new]
        if labels == others:
            pairs = zip(labels, old, new, strict=True)
            label, before, now = next(pair for pair in pairs if pair[1] != pair[2])
            return _first(f"{name}, {label}", before, now)
        gone = [label for label in labels if label not in others]
        more = [label for label in others if label not in labels]
        if bool(gone) == bool(more):
            return name, _words(gone or labels), _words(more or others)
        words, (one, other) = (
            _words(gone or more),
            ("with", "without") if gone else ("without", "with"),
        )
        return name, f"{one} {words}", f"{other} {words}"
    return name, _words(old), _words(new)


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _label(record: Mapping[str, Any]) -> str:
    return "=".join(str(record[key]) for key in _LABELS if key in record)


def _words(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "nothing"
    if isinstance(value, dict):
        return _short(", ".join(f"{key} {_words(one)}" for key, one in value.items()))
    if isinstance(value, list):
        return _short(", ".join(map(_words, value)))
    return _short(str(value))


def _told_text(text: str) -> str:
    if text == "None":
        return "nothing"
    return f"a record of {len(text):,} characters" if len(text) > _LONGEST else _short(text)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _parsed(text: str) -> Any:
    """Plain values of what ``repr`` writes of dataclasses; the text itself where it is another."""
    if len(text) > _LONGEST:
        return text
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text


def _value(node: ast.expr) -> Any:
    """Of one node; nothing is called or looked up."""
    match node:
        case ast.Call(keywords=fields):
            return {str(field.arg): _value(field.value) for field in fields}
        case ast.Dict(keys=keys, values=values):
            pairs: Sequence[Any] = list(zip(keys, values, strict=True))
            return {str(_value(key)): _value(value) for key, value in pairs if key}
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Constant(value=value):
            return value
    return ast.unparse(node)
