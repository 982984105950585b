"""Every command of examples/llama3.1-8b, on the demo's small model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.patience import patience
from tests.warm.programs import ROOT

SCRIPTS = ROOT / "examples" / "llama3.1-8b"


@pytest.fixture(scope="module")
def environment(
    warm_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    return {**warm_environment, "WORK": str(tmp_path_factory.mktemp("work"))}


def run(environment: dict[str, str], script: str, *words: str) -> str:
    done = subprocess.run(
        ["bash", str(SCRIPTS / script), *words],
        env=environment,
        cwd=environment["WORK"],
        capture_output=True,
        text=True,
        timeout=patience(280),
        check=False,
    )
    assert done.returncode == 0, f"{script} {words}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_whole_way_runs(environment: dict[str, str]) -> None:
    out = run(environment, "run_all.sh", "--mock", "1m")
    names = [path.name for path in sorted(SCRIPTS.glob("0*.sh"))]
    assert [line.split()[1] for line in out.splitlines() if line.startswith("== 0")] == names
    work = Path(environment["WORK"])
    source = json.loads((ROOT / "examples/demo/base/config.json").read_text())
    exported = json.loads((work / "Llama-3.1-8B-UltraLong-1m" / "config.json").read_text())
    assert source["max_position_embeddings"] == 512
    assert exported["max_position_embeddings"] == 1024
    results = work / "results-1m"
    losses = json.loads((results / "loss" / "loss.json").read_text())
    assert [found["checkpoint"] for found in losses["results"]] == ["base", "extended"]
    for name in ("passkey", "needle", "ruler"):
        assert (results / name / f"{name}.json").is_file()
    page = (work / "report-1m" / "index.html").read_text()
    for name in ("extended", "tuned", "niah_single_1"):
        assert name in page
    answer = next(line for line in out.splitlines() if line.startswith('{"model"'))
    assert json.loads(answer)["choices"][0]["text"]
    for script, folder in (("02_prepare.sh", "rows-1m"), ("03_import.sh", "base")):
        assert f"{work / folder} is there: kept" in run(environment, script, "--mock", "1m")


@pytest.mark.slow
@pytest.mark.parametrize(("target", "positions"), [("2m", 2048), ("4m", 4096)])
def test_the_longer_targets_train(environment: dict[str, str], target: str, positions: int) -> None:
    """From the weights and the checkpoint of the end-to-end run to the first."""
    run(environment, "02_prepare.sh", "--mock", target)
    run(environment, "04_pretrain.sh", "--mock", target)
    saved = Path(environment["WORK"]) / f"run-{target}" / "ultralong.json"
    assert json.loads(saved.read_text())["model"]["max_position_embeddings"] == positions


def test_other_words_are_refused(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPTS / "03_import.sh"), "8m"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "'8m' is not known; known: --mock, 1m, 2m, 4m" in done.stderr
