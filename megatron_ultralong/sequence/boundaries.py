"""Document boundaries as what caches are asked by: hashed once, however many layers ask."""

from __future__ import annotations


class Boundaries(tuple[int, ...]):
    """``Boundaries((0, 3, 5))``: a tuple that keeps its hash, equal to any tuple of its numbers.

    A plain tuple is hashed and compared number by number at every question, in every layer; the
    same object is known by its kept hash and its identity.
    """

    def __hash__(self) -> int:
        """The tuple's own."""
        kept: int | None = self.__dict__.get("_hash")
        if kept is None:
            kept = self.__dict__["_hash"] = super().__hash__()
        return kept
