"""What a message says of a name that is not known: the one that it misspells, and all there are."""

import re
from collections.abc import Iterable

from megatron_ultralong.program.errors import shown

_MOST_SLIPS = 3
_SHORTEST_PART = 3
"""Letters of a beginning that stands for a name: ``eval -> evaluate``."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was misspelt: ``pretran -> pretrain``, ``8b-1n -> llama3.1-8b-1m``.

    One with the fewest slips in the whole of it wins, then one that begins so, then one of which
    a part is meant; of several the shortest. Upper case is lower case, ``_`` is ``-``. Another
    number is another thing, and no slip: nothing is near ``fp16``.
    """
    plain, names = _plain(name), {one: _plain(one) for one in known}
    for nearness in (_misspelling, _beginning, _part):
        found = [
            (cost, len(one), one)
            for one, its in names.items()
            if (cost := nearness(plain, its)) is not None
        ]
        if found:
            return min(found)[-1]
    return None


def not_known(what: str, name: str, known: Iterable[str], meant: str | None = None) -> str:
    """``verb 'pretran' is not known; perhaps you meant 'pretrain'; known: prepare, pretrain``.

    Args:
        what: kind of the name: ``verb``.
        name: as it was given.
        known: the names that there are, in the order to show them in.
        meant: the one that was meant, where more is known than the name; None: the nearest.
    """
    known = list(known)
    near = meant or nearest(name, known)
    suggestion = f"; perhaps you meant {near!r}" if near else ""
    return f"{what} {shown(name)} is not known{suggestion}; known: {', '.join(known)}"


def slips(name: str, other: str) -> int:
    """Letters missing, added, changed or swapped with their neighbour between two names.

    Optimal string alignment: ``rulr, ruler -> 1``, ``exprot, export -> 1``.
    """
    before, row = [0] * (len(other) + 1), list(range(len(other) + 1))
    for i, letter in enumerate(name):
        before, last, row = row, before, [i + 1]
        for j, its in enumerate(other):
            cost = min(before[j] + (letter != its), before[j + 1] + 1, row[j] + 1)
            if i and j and letter == other[j - 1] and its == name[i - 1]:
                cost = min(cost, last[j - 1] + 1)
            row.append(cost)
    return row[-1]


def _misspelling(name: str, known: str) -> int | None:
    """Slips between two names, few enough for one to be meant by the other; None: it is not."""
    most = min(_MOST_SLIPS, max(1, len(name) // 4))
    if abs(len(name) - len(known)) > most or _numbers(name) != _numbers(known):
        return None
    if len({*name} ^ {*known}) > 2 * most:
        return None  # found sooner than by counting
    # Of a short name nobody gets the first letter wrong: ``v100`` is no ``h100``.
    is_other = len(name) <= 4 and name[1:] == known[1:] and name != known
    cost = slips(name, known)
    return None if cost > most or is_other else cost


def _beginning(name: str, known: str) -> int | None:
    """0 where a name begins another; not inside a number, ``a10`` is no ``a100``."""
    is_one = known.startswith(name) and len(name) >= _SHORTEST_PART
    return 0 if is_one and not re.match(r"\d\d", known[len(name) - 1 :]) else None


def _part(name: str, known: str) -> int | None:
    """Slips to the part of a name that is meant, such as ``rulr`` of ``evaluate ruler``."""
    costs = [cost for part in _parts(known) if (cost := _misspelling(name, part)) is not None]
    return min(costs, default=None)


def _numbers(name: str) -> list[str]:
    return re.findall(r"\d+", name)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").lstrip("-")


def _parts(name: str) -> Iterable[str]:
    """Runs of the parts of a name: ``a-b-c -> a, a-b, a-b-c, b, b-c, c``."""
    cuts = [0, *(found.end() for found in re.finditer("[-. ]", name)), len(name) + 1]
    for place, start in enumerate(cuts):
        for end in cuts[place + 1 :]:
            yield name[start : end - 1]
