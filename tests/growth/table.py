"""Functions whose steps are counted, by name: loops over documents, tensors, ranks and records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

Work = Callable[[], object]
Entry = Callable[[int, Path], Work]
ENTRIES: dict[str, tuple[int, Entry]] = {}
HEAVY: set[str] = set()


def counted(n: int, *, heavy: bool = False) -> Callable[[Entry], Entry]:
    """Enter a function under its own name; it is given ``n`` and ``4 n``, and a new folder.

    ``heavy``: it takes seconds, and runs with the tests that do.
    """

    def enter(entry: Entry) -> Entry:
        ENTRIES[entry.__name__] = (n, entry)
        HEAVY.update({entry.__name__} if heavy else ())
        return entry

    return enter


def edges_of(n: int, longest: int = 30) -> list[int]:
    """Boundaries of ``n`` documents."""
    lengths = np.random.default_rng(0).integers(1, longest, size=n)
    lengths[-1] += -lengths.sum() % 64  # chunks of 8 ranks
    return [0, *np.cumsum(lengths).tolist()]
