"""Ranks that see other files: what is finished, the main one decides for all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ultralong import cli
from tests.evaluation.long.data import mrcr_row, write_jsonl
from tests.patience import patience
from tests.ranks import run_on_ranks
from tests.training.chats import write_chat_model

LINE = (
    "evaluate mrcr {load} --data {data} --tasks 2needle --prompt-template base --max-new-tokens 8 "
    "--precision fp32 --context-parallel-size 2"
)
PROGRAM = """
import os, sys
os.chdir("rank" + os.environ["RANK"])
from megatron_ultralong import cli
cli.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and conversations."""
    folder = tmp_path_factory.mktemp("inputs")
    write_chat_model(folder, max_position_embeddings=4096, num_hidden_layers=2)
    write_jsonl(folder / "mrcr.jsonl", [mrcr_row(2, 50)])
    shutil.copytree(folder / "hf", folder / "hf-b")
    file = folder / "hf-b" / "model.safetensors"
    torch.manual_seed(7)
    weights = {name: one + 0.3 * torch.randn_like(one) for name, one in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    for source, name in (("hf", "a"), ("hf-b", "b")):
        cli.main(["convert", "import", str(folder / source), str(folder / name)])
    return folder


def line(inputs: Path, *names: str) -> str:
    loads = " ".join(f"{name}={inputs / name}" for name in names)
    return LINE.format(load=f"--load {loads}", data=inputs / "mrcr.jsonl")


def evaluated(root: Path, words: str) -> tuple[int, str]:
    """Status and text of a rank, in its own folder."""
    folder = root / f"rank{os.environ['RANK']}"
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    status, text = 0, io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            cli.main([*words.split(), "--output", "out"])
        except SystemExit as end:
            status = int(end.code or 0)
    return status, text.getvalue()


def answers(folder: Path) -> list[str]:
    """What a model wrote: it learnt nothing, and has no right ones."""
    (file,) = folder.glob("*.jsonl")
    return [json.loads(row)["prediction"] for row in file.read_text().splitlines()]


@pytest.mark.slow
def test_a_rank_that_sees_no_output_evaluates_what_the_main_one_does(
    inputs: Path, tmp_path: Path
) -> None:
    words = line(inputs, "a", "b")
    right, apart = tmp_path / "right", tmp_path / "apart"
    for folder in (right, apart):
        folder.mkdir()
    assert [status for status, _ in run_on_ranks(2, evaluated, right, words)] == [0, 0]
    of_both = [answers(right / "rank0" / "out" / name) for name in ("a", "b")]
    assert of_both[0] != of_both[1]
    assert not (right / "rank1" / "out").exists()

    shutil.copytree(right / "rank0" / "out" / "a", apart / "rank0" / "out" / "a")
    (first, said), (second, _) = run_on_ranks(2, evaluated, apart, words)
    assert (first, second) == (0, 0), said
    assert said.count("a: already evaluated, see out/a\n") == 1
    assert answers(apart / "rank0" / "out" / "b") == of_both[1]

    shutil.copytree(apart / "rank0" / "out", apart / "rank1" / "out")  # seen by rank 1 alone
    shutil.rmtree(apart / "rank0" / "out")
    assert [status for status, _ in run_on_ranks(2, evaluated, apart, words)] == [0, 0]
    assert [answers(apart / "rank0" / "out" / name) for name in ("a", "b")] == of_both

    ends = run_on_ranks(2, evaluated, apart, line(inputs, "a", "b") + " --max-new-tokens 9")
    assert [status for status, _ in ends] == [2, 2]
    assert "holds another evaluation: --max-new-tokens was 8, now it is 9" in ends[0][1]


@pytest.mark.parametrize("sees", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_job_of_torchrun_ends_where_one_rank_sees_an_output(
    sees: int, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = line(inputs, "a").replace(" --context-parallel-size 2", "").split()
    for rank in range(2):
        (tmp_path / f"rank{rank}").mkdir()
    monkeypatch.chdir(tmp_path / f"rank{sees}")
    cli.main([*words, "--output", "out"])
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "program.py", *words]
    done = subprocess.run(
        [*command, "--context-parallel-size", "2", "--output", "out"],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=patience(120),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    is_told = "a: already evaluated, see out\n" in done.stderr
    assert is_told == (sees == 0)
    assert answers(tmp_path / "rank0" / "out")
