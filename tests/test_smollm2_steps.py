"""All steps of examples/smollm2, with short values, on a CPU."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from megatron_ultralong.evaluation.results.file import read_results
from tests.patience import patience
from tests.test_smollm2 import POSITIONS, SCRIPTS, settings
from tests.warm.programs import ROOT

CACHE = ROOT / ".smollm2-cache"
"""Kept: the first run fetches the model and the packages."""


@pytest.mark.slow
@pytest.mark.timeout(patience(2400))  # the first time it fetches 130 MB
def test_all_steps_run_on_a_cpu(warm_environment: dict[str, str], tmp_path: Path) -> None:
    environment = {**warm_environment, "CACHE": str(CACHE), "WORK": str(tmp_path / "work")}
    done = subprocess.run(
        ["bash", str(SCRIPTS / "run_all.sh"), "--cpu"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=patience(2300),
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    steps = [path.name for path in sorted(SCRIPTS.glob("[0-9]*.sh"))]
    started = re.findall(r"^== (\d+_\w+\.sh)", done.stdout, re.MULTILINE)
    assert started == steps
    assert "272 tensors, 3 prompts: the same weights, the same text" in done.stdout
    short = settings("--cpu")
    work = tmp_path / "work"
    exported = json.loads((work / "SmolLM2-135M-Instruct-128k" / "config.json").read_text())
    assert exported["max_position_embeddings"] == int(short["FACTOR"]) * POSITIONS
    assert exported["rope_scaling"]["factor"] == float(short["FACTOR"])
    found = read_results(work / "results-128k" / "loss" / "loss.json", "position_loss")
    assert [result.checkpoint for result in found] == ["before", "after", "tuned"]
    assert len({repr(result.cells) for result in found}) == 3, "it was trained, and tuned"
    for kind in ("passkey", "needle"):
        for name in ("before", "after", "tuned"):
            (result,) = read_results(work / "results-128k" / kind / name / f"{kind}.json", kind)
            assert result.checkpoint == name
            assert result.lengths == tuple(map(int, short["LENGTHS"].split()))
    done = subprocess.run(
        ["bash", str(SCRIPTS / "ruler.sh"), "--cpu"],
        env=environment, cwd=work, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    for name, lengths in (
        ("before", "RULER_SHORT"),
        ("after", "RULER_SHORT"),
        ("after-long", "RULER_LONG"),
    ):
        (result,) = read_results(work / "results-128k" / "ruler" / name / "ruler.json", "ruler")
        assert result.lengths == tuple(map(int, short[lengths].split()))
    for script in ("run_all.sh", "ruler.sh"):  # what is there is kept
        again = subprocess.run(
            ["bash", str(SCRIPTS / script), "--cpu"],
            env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert again.returncode == 0, f"{again.stdout[-5000:]}\n{again.stderr[-5000:]}"
    page = (work / "report-128k" / "index.html").read_text()
    assert "before" in page
    assert "after" in page
    assert (work / "rows-held-out-128k" / "manifest.json").is_file()
    check_million(environment, work)


def check_million(environment: dict[str, str], work: Path) -> None:
    """million.sh, with the rows and the weights that are there."""
    done = subprocess.run(
        ["bash", str(SCRIPTS / "million.sh"), "--cpu"],
        env=environment, cwd=work, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    for kind in ("passkey", "needle"):
        (found,) = read_results(work / "results-1m" / kind / f"{kind}.json", kind)
        assert found.lengths == (int(settings("--cpu")["MILLION_LENGTH"]),), kind
    losses = read_results(work / "results-1m" / "loss" / "loss.json", "position_loss")
    assert [result.checkpoint for result in losses] == ["before", "after"]
    assert len({repr(result.cells) for result in losses}) == 2, "it was trained"
