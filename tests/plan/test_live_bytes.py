"""The plan's memory beside live tensors of the program's own training steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.model.families import FAMILIES
from tests.ranks import run_program

ROOT = Path(__file__).parents[2]


def measured(tmp_path: Path, *words: str) -> Any:
    """What ``tools/benchmark_plan.py`` finds (``make bench-plan`` runs all of it)."""
    path = tmp_path / "figures.json"
    run_program(ROOT / "tools" / "benchmark_plan.py", *words, "--json", str(path))
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    "layouts",
    [
        ("DP 2",),
        pytest.param(("CP 2, optimizer",), marks=pytest.mark.slow),
        pytest.param(("TP 2, sequence", "PP 2", "CP 4 by"), marks=pytest.mark.slow),
    ],
)
def test_the_peak_of_a_layout_is_the_plan_s(tmp_path: Path, layouts: tuple[str, ...]) -> None:
    rows = measured(tmp_path, "layouts", "--emulate", "--only", *layouts)
    assert len(rows) == len(layouts)
    for row in rows:
        # Asked: 10 %; what is left are tensors of single tiles and buffers between stages.
        assert row["planned"] == pytest.approx(row["measured"], rel=0.05), row["layout"]


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llama"])
def test_the_peak_of_another_family_is_the_plan_s(tmp_path: Path, family: str) -> None:
    rows = measured(tmp_path, "layouts", "--emulate", "--family", family, "--only", "DP 2", "CP 2,")
    assert len(rows) == 2
    for row in rows:
        assert row["planned"] == pytest.approx(row["measured"], rel=0.05), row["layout"]


@pytest.mark.slow
def test_the_peak_grows_with_the_row_as_planned(tmp_path: Path) -> None:
    found = measured(tmp_path, "slope", "--lengths", "6144", "8192", "12288")
    # Asked: 15 %; every tensor that is as long as the row is in the plan.
    assert found["ratio"] == pytest.approx(1, rel=0.02)
    assert found["largest distance from the line"] < 0.01
