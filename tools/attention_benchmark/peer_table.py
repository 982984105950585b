"""Rows of a race against peers, and what was asked for."""

from __future__ import annotations

import math
from typing import NamedTuple

from .contest import Contestant, Task
from .measurement import header, row
from .own_attention import NAME
from .race import Figures, Race, SkippedError

SPEED, SPEED_WITH_DOCUMENTS, MEMORY = 1.0, 2.0, 0.8  # asked for, of this project over a peer

COLUMNS = [
    "tokens", "documents", "kernels", "contestant", "kernel", "forward, s", "backward, s", "GiB",
    "error of out", "dq", f"speed of {NAME} over it", f"GiB of {NAME} over it",
    "speed of its fastest over it", "GiB of its fastest over it",
]  # fmt: skip


class Ratio(NamedTuple):
    """One of this project over a peer, in one block of the table."""

    own: Contestant
    peer: Contestant
    row: str
    """Its length and documents."""
    has_documents: bool
    speed: float
    memory: float
    """NaN if the device does not count."""

    @property
    def is_default(self) -> bool:
        """It is the default, not the fastest, of this project's."""
        return self.own.is_reference


class Table:
    """What rank 0 prints."""

    def __init__(self, prints: bool) -> None:
        """``prints``: this is the rank that does."""
        self._prints = prints

    def say(self, text: str) -> None:
        """A paragraph."""
        if self._prints:
            print(text, flush=True)

    def header(self, *cells: str) -> None:
        """Heads of the columns."""
        if self._prints:
            header(*cells)

    def row(self, *cells: object) -> None:
        """A row."""
        if self._prints:
            row(*cells)


def block(table: Table, race: Race, task: Task, kernel: str, its: list[Contestant]) -> list[Ratio]:
    """Rows of one length, mask and kernel; ratios over each peer, of the default and the best."""
    if not its:
        return []
    start = (f"{task.length:,}", task.mask, kernel)
    try:
        found = race.over(task, its)
    except SkippedError as reason:
        table.row(*start, "all", str(reason), *["-"] * (len(COLUMNS) - 5))
        return []
    measured = {each: its for each, its in found.items() if isinstance(its, Figures)}
    own = [each for each in measured if is_own(each)]
    default = next((each for each in own if each.is_reference), None)
    best = min(own, key=lambda each: measured[each].seconds, default=None)
    for each, figures in found.items():
        if isinstance(figures, str):
            table.row(*start, each.name, f"cannot run: {figures}", *["-"] * (len(COLUMNS) - 5))
            continue
        cells = []
        for reference in (default, best):
            is_compared = reference is not None and each is not reference
            cells += _cells(measured[reference], figures) if is_compared else ["-", "-"]
        table.row(
            *start, each.name, figures.kernel, f"{figures.forward:.4f}", f"{figures.backward:.4f}",
            f"{figures.gib:.2f}" if figures.gib == figures.gib else "-",
            *(f"{error:.1e}" for error in figures.errors), *cells,
        )  # fmt: skip
    place = f"{task.length:,} tokens, {task.mask}"
    return [
        Ratio(first, peer, place, task.edges is not None, *_ratios(measured[first], measured[peer]))
        for peer in measured
        if not is_own(peer)
        for first in (default, best)
        if first is not None
    ]


def is_own(contestant: Contestant) -> bool:
    """Whether it is one of this project."""
    return contestant.name.startswith(NAME)


def _ratios(own: Figures, other: Figures) -> tuple[float, float]:
    """Speed and memory of one over another."""
    return other.seconds / own.seconds, own.gib / other.gib


def _cells(own: Figures, other: Figures) -> list[str]:
    speed, memory = _ratios(own, other)
    return [f"{speed:.2f}", f"{memory:.2f}" if memory == memory else "-"]


def verdict(table: Table, found: list[Ratio]) -> None:
    """What was asked for, and the row that is furthest from it: of the default, then of the best.

    Then the same by peer.
    """
    names = dict.fromkeys(its.peer.name for its in found)
    for what, chosen in (
        ("the default", [its for its in found if its.is_default]),
        ("the fastest of its own", _fastest(found)),
    ):
        table.say(f"\n{NAME}, {what}:\n")
        plain = [its for its in chosen if not its.has_documents]
        engine = [its for its in chosen if its.has_documents and "Engine" in its.peer.name]
        table.say(_speed("every peer, no documents", plain, SPEED))
        table.say(_speed("Transformer Engine on documents", engine, SPEED_WITH_DOCUMENTS))
        counted = [its for its in chosen if not math.isnan(its.memory)]
        memory = max(counted, key=lambda its: its.memory, default=None)
        table.say(_line("GiB over every peer", memory, MEMORY, is_most=True))
        for name in names:
            its_rows = [its for its in chosen if its.peer.name == name]
            for is_with, asked in ((False, SPEED), (True, SPEED_WITH_DOCUMENTS)):
                rows = [its for its in its_rows if its.has_documents == is_with]
                if rows:
                    mask = "on documents" if is_with else "no documents"
                    table.say(_speed(f"{name}, {mask}", rows, asked))


def _fastest(found: list[Ratio]) -> list[Ratio]:
    """Of each block and peer, the ratio of the fastest: the default may be it."""
    by_place = {}
    for its in found:
        key = (its.row, its.peer.kernel, its.peer.name)
        if key not in by_place or its.speed > by_place[key].speed:
            by_place[key] = its
    return list(by_place.values())


def _speed(what: str, rows: list[Ratio], asked: float) -> str:
    return _line(f"speed over {what}", min(rows, key=lambda its: its.speed, default=None), asked)


def _line(what: str, worst: Ratio | None, asked: float, is_most: bool = False) -> str:
    start = f"* {what}: at {'most' if is_most else 'least'} {asked} is asked for; "
    if worst is None:
        return start + "nothing to compare with"
    value = worst.memory if is_most else worst.speed
    holds = value <= asked if is_most else value >= asked
    return (
        f"{start}{'yes' if holds else 'NO'}, {value:.2f} at the worst ({worst.own.name} over "
        f"{worst.peer.name}, {worst.peer.kernel} kernel, {worst.row})"
    )
