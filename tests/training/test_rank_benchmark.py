"""``tools/benchmark_rank.py``: one rank of a job that has 16."""

from __future__ import annotations

import contextlib
import io
import json
import math
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import patience
from tests.ranks import run_on_ranks, run_program

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


def _beside(words: list[str]) -> str:
    said = io.StringIO()
    sys.argv = ["benchmark_rank.py", *words]
    sys.path.insert(0, str(ROOT / "tools"))
    with contextlib.redirect_stdout(said):
        runpy.run_path(str(ROOT / "tools" / "benchmark_rank.py"), run_name="__main__")
    return said.getvalue()


def test_two_ranks_print_steps_beside_those_of_transformer_engine(tiny: Path) -> None:
    options = "--recipe demo-cpu --seq-length 256 --context-parallel-size 2 --turns 2"
    options += " --tensor-model-parallel-size 1 --beside-transformer-engine p2p all_gather"
    said, nothing = run_on_ranks(2, _beside, [*options.split(), "--load", str(tiny / "base")])
    assert not nothing, "one rank prints"
    rows = [line.strip("| ").split(" | ") for line in said.splitlines() if line[:2] == "| "][2:]
    names = [row[0] for row in rows]
    assert names[:2] == ["megatron-ultralong", "megatron-ultralong, layers recomputed as a whole"]
    refused = said.count("cannot run: transformer_impl 'transformer_engine'")
    assert len(names) + refused == 4
    # The same weights and tokens: sums in tiles and in whole differ in float32's last digits.
    assert len({round(float(row[3]), 3) for row in rows}) == 1


@pytest.mark.slow
def test_two_ranks_print_real_steps_beside_emulated_ones(tiny: Path) -> None:
    options = "--recipe demo-cpu --seq-length 256 --context-parallel-size 2 --turns 2"
    options += " --tensor-model-parallel-size 1 --beside-emulation"
    said, nothing = run_on_ranks(2, _beside, [*options.split(), "--load", str(tiny / "base")])
    assert not nothing, "one rank prints"
    rows = [line.strip("| ").split(" | ") for line in said.splitlines() if line[:2] == "| "]
    ranks = {row[0]: row for row in rows[2:5]}
    assert list(ranks) == ["0", "1", "slowest"]
    for column in (1, 2):
        seconds = [float(ranks[rank][column]) for rank in "01"]
        assert float(ranks["slowest"][column]) == max(seconds) > 0
    for row in ranks.values():
        # Tens of milliseconds, of which three digits behind the point are printed.
        assert abs(float(row[2]) / float(row[1]) / float(row[3]) - 1) < 0.1
    # Random weights: the real loss is that of all ranks, the emulated one of this rank's tokens.
    losses = [float(row[column].split(",")[0]) for row in rows[2:4] for column in (6, 7)]
    assert losses[0] == losses[2]
    assert max(losses) - min(losses) < 0.1 * max(losses)
    assert {"forward", "backward"} <= {row[0] for row in rows}


def test_beside_emulation_wants_real_ranks(tiny: Path) -> None:
    words = ["--recipe", "demo-cpu", "--load", str(tiny / "base"), "--beside-emulation"]
    program = [sys.executable, str(ROOT / "tools" / "benchmark_rank.py"), *words]
    run = subprocess.run(
        program, capture_output=True, text=True, timeout=patience(120), check=False
    )
    assert run.returncode == 1
    assert "start it with torchrun" in run.stderr
