"""What a message says of a name that is not known: the nearest one that is, and all of them."""

import difflib
import re
from collections.abc import Iterable

from megatron_ultralong.program.fields import shown

_CLOSE = 0.6
"""Least similarity of a suggestion, see :func:`difflib.get_close_matches`."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant: ``pretran -> pretrain``, ``8b-1n -> llama3.1-8b-1m``.

    Upper case is lower case, ``_`` is ``-``, and some parts of a name stand for it.
    """
    known = list(known)
    candidates = {_plain(one): one for one in known}
    for one in known:
        for part in _parts(_plain(one)):
            candidates.setdefault(part, one)
    close = difflib.get_close_matches(_plain(name), candidates, n=1, cutoff=_CLOSE)
    return candidates[close[0]] if close else None


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


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _parts(name: str) -> Iterable[str]:
    """Runs of the parts of a name: ``a-b-c -> a, a-b, a-b-c, b, b-c, c``."""
    cuts = [0, *(found.end() for found in re.finditer("[- ]", name)), len(name) + 1]
    for place, start in enumerate(cuts):
        for end in cuts[place + 1 :]:
            yield name[start : end - 1]
