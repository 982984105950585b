"""Bytes alive while a step is walked through, by part of the memory and moment of the step."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Literal

Part = Literal[
    "weights",
    "FP8 weights",
    "gradients",
    "optimizer",
    "saved activations",
    "hidden states",
    "queries, keys, values",
    "attention",
    "ring and gather buffers",
    "projection and MLP tile",
    "loss",
    "embedding",
    "tokens and angles",
]
"""What memory is used for; a table shows them in this order."""


@dataclasses.dataclass(frozen=True)
class Peak:
    """The most that was alive at one moment, by part."""

    moment: str
    parts: dict[Part, int]

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self.parts.values())


class Ledger:
    """Counts what is taken and given back."""

    def __init__(self) -> None:
        self._parts: Counter[Part] = Counter()
        self._total = 0
        self._moment: str | None = None
        self.peaks: dict[str, Peak] = {}
        """The peak of every moment."""

    def take(self, part: Part, size: int) -> None:
        """``size`` bytes more are alive."""
        self._parts[part] += size
        self._total += size
        if self._moment is None:  # on the way to a moment that counts
            return
        known = self.peaks.get(self._moment)
        if known is None or self._total > known.total:
            parts = {name: count for name, count in self._parts.items() if count}
            self.peaks[self._moment] = Peak(self._moment, parts)

    def give(self, part: Part, size: int) -> None:
        """``size`` bytes less."""
        self._parts[part] -= size
        self._total -= size
        assert self._parts[part] >= 0, f"more of {part} given back than taken"

    def give_all(self, part: Part) -> None:
        """Nothing of a part is alive any more."""
        self.give(part, self._parts[part])

    @contextlib.contextmanager
    def hold(self, part: Part, *sizes: int) -> Iterator[None]:
        """``sizes`` are alive inside this context."""
        total = sum(sizes)
        self.take(part, total)
        yield
        self.give(part, total)

    def touch(self, part: Part, *sizes: int) -> None:
        """``sizes`` are alive for an instant."""
        with self.hold(part, *sizes):
            pass

    @contextlib.contextmanager
    def moment(self, name: str) -> Iterator[None]:
        """A named part of the step."""
        before, self._moment = self._moment, name
        self.touch("weights", 0)  # what is alive already counts
        yield
        self._moment = before
