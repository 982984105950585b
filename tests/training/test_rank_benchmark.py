"""``tools/benchmark_rank.py``: one rank of a job that has 16."""

from __future__ import annotations

import json
import math
from pathlib import Path

from tests.ranks import run_program

ROOT = Path(__file__).parents[2]


def test_one_rank_of_sixteen_runs_alone(tiny: Path, tmp_path: Path) -> None:
    options = "--warm-up 64 --seq-length 256 --context-parallel-size 4 --world-size 16"
    options += " --tensor-model-parallel-size 2 --sequence-tile-size 24 --offload-activations"
    figures = tmp_path / "figures.jsonl"
    words = ["--recipe", "demo-cpu", "--load", str(tiny / "base"), "--json", str(figures)]
    run_program(ROOT / "tools" / "benchmark_rank.py", *words, *options.split())
    found = json.loads(figures.read_text())
    # Random weights know nothing: the loss of rank 0's half of the vocabulary.
    assert 0 < found["measured: loss"] < math.log(10_000)
    sent = found["measured: GB that leave the rank"]
    assert {"all-gather over 2", "reduce-scatter over 2", "send over 4"} <= set(sent)
