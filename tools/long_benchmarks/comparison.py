"""Two scorers on the same answers, odd ones among them."""

from typing import Any

Comparison = tuple[str, int, int, str]
"""What, how many were equal, of how many, and what a reader has to know."""
NUM_ANSWERS = 50
ODD = (
    "", " ", "\n", "\u2028", "\x85", "é\u0301", "日本語", "\U0001f600",
    "**", "[]", "()", "None", "null", "[[", "]]", ",", "\\", "\r\n", "\0",
)  # fmt: skip


def compare(
    what: str, cases: list[tuple[Any, ...]], actual: Any, expected: Any, note: str = ""
) -> Comparison:
    """Both scorers on the same cases; the first that differ are printed."""
    assert len(cases) >= NUM_ANSWERS, (what, len(cases))
    pairs = [(case, float(actual(*case)), float(expected(*case))) for case in cases]
    other = [pair for pair in pairs if abs(pair[1] - pair[2]) > 1e-12]
    for case, own, upstream in other[:3]:
        print(f"{what}: {case!r}: {own:g} here, {upstream:g} upstream")
    return what, len(pairs) - len(other), len(pairs), note
