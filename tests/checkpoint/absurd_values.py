"""Values that no file of a model has, of every type, and where in a JSON value they can stand."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

_INSIDE: list[Any] = [5, [5], [{}], "x", [], [{"type": "NFC"}]]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, -4, 2, 3, 7, 32, 0.0, 0.5, -5.0, 1.0, 1.0000000000000002, 1e30),
    *(2**31, 2**32, 2**40, 2**40 + 1, 4_000_000_000, 10**30, -(10**30), 1e300, -1e300, 1e-300),
    *("", "x", "a b", "\ud800", "\x00", "y" * 3000, "linear", "BPE", "Sequence", "ByteLevel"),
    *([], [1], ["a"], ["a", "b"], [[]], [["a"]], [["a", 1]], [1, 2], ["a", 1], [{}], [None]),
    *({}, {"type": "x"}, {"type": ["x"]}, {"type": "Sequence"}, {"x": 1}, {"Regex": ["a"]}),
    *({"String": "a"}, {"Regex": "["}, {"Regex": 1}, {"content": ["x"]}, {"content": "a"}),
    *(
        {"type": "Sequence", key: inside}
        for key in ("pretokenizers", "normalizers")
        for inside in _INSIDE
    ),
]
ABSENT = object()
"""Instead of a value: the key is not there."""
Place = tuple[str | int, ...]


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Where something stands in ``value``; of a long array its first two."""
    if place:
        yield place
    if isinstance(value, dict):
        inside: list[tuple[str | int, Any]] = list(value.items())
    else:
        inside = list(enumerate(value[:2])) if isinstance(value, list) else []
    for key, inner in inside:
        yield from places(inner, (*place, key))


def changed(value: Any, place: Place, new: Any) -> Any:
    """A copy of ``value`` with ``new`` at ``place``."""
    value = copy.deepcopy(value)
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    if new is ABSENT:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return value


def every_change(value: dict[str, Any]) -> Iterator[tuple[Place, Any]]:
    """Every value at every place, alone."""
    for place in places(value):
        for new in (*VALUES, ABSENT):
            yield place, new


def random_change(value: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Two to four values at random places."""
    for _ in range(rng.randint(2, 4)):
        found = list(places(value))
        if found:
            value = changed(value, rng.choice(found), rng.choice([*VALUES, ABSENT]))
    return value
