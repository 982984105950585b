"""The matrix in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .matrix import Cell
from .models import GREEDY

_COLUMNS = ("block", "engine", "good_for", "difference", "greedy tokens", "with these flags")


def table_of_cells(cells: Iterable[Cell], *, header: bool = True) -> str:
    """A line for each cell."""
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))] if header else []
    for cell in cells:
        verdict = cell.verdict
        lines.append(
            _line(
                (
                    cell.block,
                    f"{verdict.engine} {verdict.version}",
                    verdict.outcome,
                    _difference(cell),
                    "" if cell.greedy is None else f"{cell.greedy} of {GREEDY}",
                    _with_flags(cell),
                )
            )
        )
    return "\n".join(lines)


def _difference(cell: Cell) -> str:
    if cell.error:
        return "refused"
    identical = "; bit-identical without keys said twice" if cell.identical else ""
    return f"{cell.difference:.1e}{identical}"


def _with_flags(cell: Cell) -> str:
    if cell.with_flags is None:
        return ""
    difference, greedy = cell.with_flags
    return f"{difference:.1e}, {greedy} of {GREEDY}: `{cell.verdict.flags}`"


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def page(cells: Sequence[tuple[str, Cell]]) -> str:
    """Tables by model."""
    parts = []
    for title in dict.fromkeys(title for title, _ in cells):
        of_it = [cell for name, cell in cells if name == title]
        parts.append(f"## {title}\n\n{table_of_cells(of_it)}\n")
    return "\n".join(parts)
