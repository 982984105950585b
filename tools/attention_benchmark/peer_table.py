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
]  # fmt: skip


class Ratio(NamedTuple):
    """The reference over another contestant."""

    contestant: Contestant
    row: str
    """Its length and documents."""
    has_documents: bool
    speed: float
    memory: float
    """NaN if the device does not count."""


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
    """Rows of one length, mask and kernel; ratios of the reference over each other contestant."""
    if not its:
        return []
    start = (f"{task.length:,}", task.mask, kernel)
    place, has_documents = f"{task.length:,} tokens, {task.mask}", task.edges is not None
    try:
        found = race.over(task, its)
    except SkippedError as reason:
        table.row(*start, "all", str(reason), *["-"] * 7)
        return []
    reference = next((x for each, x in found.items() if each.is_reference), None)
    ratios: list[Ratio] = []
    for each, figures in found.items():
        if isinstance(figures, str):
            table.row(*start, each.name, f"cannot run: {figures}", *["-"] * 7)
            continue
        cells = ["-", "-"]
        if isinstance(reference, Figures) and not each.is_reference:
            speed, memory = figures.seconds / reference.seconds, reference.gib / figures.gib
            cells = [f"{speed:.2f}", f"{memory:.2f}" if memory == memory else "-"]
            ratios.append(Ratio(each, place, has_documents, speed, memory))
        table.row(
            *start, each.name, figures.kernel, f"{figures.forward:.4f}", f"{figures.backward:.4f}",
            f"{figures.gib:.2f}" if figures.gib == figures.gib else "-",
            *(f"{error:.1e}" for error in figures.errors), *cells,
        )  # fmt: skip
    return ratios


def verdict(table: Table, found: list[Ratio]) -> None:
    """What was asked for, and the row that is furthest from it."""
    peers = [its for its in found if not its.contestant.name.startswith(NAME)]
    plain = [its for its in peers if not its.has_documents]
    engine = [its for its in peers if its.has_documents and "Engine" in its.contestant.name]
    counted = [its for its in peers if not math.isnan(its.memory)]
    table.say("")
    speed = min(plain, key=lambda its: its.speed, default=None)
    table.say(_line("speed over every peer, no documents", speed, SPEED))
    speed = min(engine, key=lambda its: its.speed, default=None)
    table.say(_line("speed over Transformer Engine on documents", speed, SPEED_WITH_DOCUMENTS))
    memory = max(counted, key=lambda its: its.memory, default=None)
    table.say(_line("GiB over every peer", memory, MEMORY, is_most=True))


def _line(what: str, worst: Ratio | None, asked: float, is_most: bool = False) -> str:
    start = f"* {what}: at {'most' if is_most else 'least'} {asked} is asked for; "
    if worst is None:
        return start + "nothing to compare with"
    value = worst.memory if is_most else worst.speed
    holds = value <= asked if is_most else value >= asked
    return (
        f"{start}{'yes' if holds else 'NO'}, {value:.2f} at the worst ({worst.contestant.name}, "
        f"{worst.contestant.kernel} kernel, {worst.row})"
    )
