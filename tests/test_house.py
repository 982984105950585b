"""The picture of the package is the code's, and no two of its arrows are drawn over each other."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tools.draw_house import lanes, picture, without_shortcuts

ROOT = Path(__file__).parent.parent


def test_the_picture_is_todays() -> None:
    assert (ROOT / "docs" / "house.svg").read_text() == picture(), "run `make picture`"


def test_an_import_that_follows_from_others_is_not_drawn() -> None:
    edges = {"a": {"b", "c", "d"}, "b": {"c"}, "c": set(), "d": set()}
    assert without_shortcuts(edges) == {"a": {"b", "d"}, "b": {"c"}, "c": set(), "d": set()}


@given(st.sets(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=30))
def test_arrows_in_one_lane_do_not_overlap(drawn: set[tuple[int, int]]) -> None:
    spans = [(start, start + length) for start, length in sorted(drawn)]
    chosen = lanes(spans)
    for number, (start, stop) in enumerate(spans):
        for other, (its_start, its_stop) in enumerate(spans[:number]):
            apart = stop <= its_start or its_stop <= start
            assert apart or chosen[number] != chosen[other]
