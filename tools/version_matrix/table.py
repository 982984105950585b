"""Tables of results, and the place they have in a page."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from pathlib import Path

from .leg import Leg
from .results import Result

BEGIN = "<!-- matrix: written by tools/run_matrix.py --write -->"
END = "<!-- end of matrix -->"


def short_table(results: Iterable[tuple[Leg, Result]]) -> str:
    """A row for each leg: versions, what ran, what came out."""
    rows = [
        (leg.python, leg.megatron_core, _what(leg), _outcome(result)) for leg, result in results
    ]
    return _markdown(("Python", "Megatron-Core", "tests", "outcome"), rows)


def long_table(results: list[tuple[Leg, Result]]) -> str:
    """The same with all versions, time and day; below it why tests were left out, and failures."""
    head = ("Python", "Megatron-Core", "torch", "transformers", "tests", "outcome", "time", "day")
    rows = []
    for leg, result in results:
        versions = [
            result.versions[name] for name in ("python", "megatron-core", "torch", "transformers")
        ]
        time = f"{result.seconds:.0f} s on {result.num_cores} cores"
        rows.append((*versions, _what(leg), _outcome(result), time, result.day))
    reasons: dict[str, list[str]] = collections.defaultdict(list)
    for leg, result in results:
        for reason, number in sorted(result.left_out.items()):
            reasons[reason].append(f"{number} on {leg.name}")
    lines = [f"* left out, {reason}: {', '.join(where)}" for reason, where in reasons.items()]
    lines += [f"* failed on {leg.name}: `{name}`" for leg, r in results for name in r.failed]
    return "\n\n".join(filter(None, (_markdown(head, rows), "\n".join(lines))))


def write_between(page: Path, table: str) -> None:
    """Put a table between the two marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{page} has no place for a table: {BEGIN} and {END}"
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def _what(leg: Leg) -> str:
    return "a selection" if leg.tests else "all"


def _outcome(result: Result) -> str:
    failed = f", **{len(result.failed)} failed**" if result.failed else ""
    return f"{result.passed:,} passed{failed}, {sum(result.left_out.values())} left out"


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
