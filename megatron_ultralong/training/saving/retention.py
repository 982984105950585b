"""Which checkpoints of a run are removed when a new one has been written."""

from __future__ import annotations

from collections.abc import Iterable


def expired(iterations: Iterable[int], *, retain_last: int, retain_interval: int) -> list[int]:
    """Iterations whose checkpoints can go, in order; never the newest.

    ``[5, 10, 15, 20, 25], retain_last=2, retain_interval=10 -> [5, 15]``.

    Args:
        iterations: good checkpoints, the one just written among them.
        retain_last: the newest to keep; 0 keeps all.
        retain_interval: multiples of it stay for good; 0: none.
    """
    ordered = sorted(iterations)
    if not retain_last:
        return []
    return [
        iteration
        for iteration in ordered[:-retain_last]
        if not retain_interval or iteration % retain_interval
    ]
