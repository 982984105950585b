"""The sizes of docs/clusters.md are what `plan` says."""

from __future__ import annotations

from tools import slurm_sizes


def test_the_sizes_are_those_of_the_plan() -> None:
    text = slurm_sizes.PAGE.read_text(encoding="utf-8")
    assert slurm_sizes.page(text) == text, "python tools/slurm_sizes.py"
