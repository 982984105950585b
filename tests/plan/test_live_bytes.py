"""The plan's memory beside live tensors of the program's own training steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def measured(tmp_path: Path, *words: str) -> Any:
    """What ``tools/benchmark_plan.py`` finds (``make bench-plan`` runs all of it)."""
    path = tmp_path / "figures.json"
    tool = [sys.executable, "-W", "ignore", "tools/benchmark_plan.py", *words, "--json", str(path)]
    subprocess.run(tool, check=True, timeout=250, cwd=ROOT, capture_output=True)
    return json.loads(path.read_text())


def test_the_peak_of_a_layout_is_the_plan_s(tmp_path: Path) -> None:
    layouts = ("TP 2, sequence", "PP 2", "DP 2")
    rows = measured(tmp_path, "layouts", "--emulate", "--only", *layouts)
    assert len(rows) == 3
    assert len({row["memory"]["recompute_granularity"] for row in rows}) == 2
    for row in rows:
        # Asked: 10 %; what is left are tensors of single tiles and buffers between stages.
        assert row["planned"] == pytest.approx(row["measured"], rel=0.05), row["layout"]


def test_the_peak_grows_with_the_row_as_planned(tmp_path: Path) -> None:
    found = measured(tmp_path, "slope", "--lengths", "8192", "12288", "16384")
    # Asked: 15 %; every tensor that is as long as the row is in the plan.
    assert found["ratio"] == pytest.approx(1, rel=0.02)
    assert found["largest distance from the line"] < 0.01
