"""A GPU that another program holds is told of at the start, with its rank and host."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from megatron_ultralong.training import loop
from megatron_ultralong.training.telling import shared_gpus
from megatron_ultralong.training.verbs import pretrain
from tests.training.conftest import MakeConfig

HOLD = """
import torch
held = torch.empty(4 * 2**30, dtype=torch.uint8, device="cuda")
print("held", flush=True)
input()
"""


def test_gpus_of_nobody_else_are_not_told_of() -> None:
    assert shared_gpus.shared_gpus([("GPU 0 of a", 0), ("GPU 1 of a", 0)]) == ()
    if not torch.cuda.is_available():
        assert shared_gpus.gpu_of_this_rank() == ("", 0)


def test_shared_ones_are_named_with_their_ranks_and_not_all_of_many() -> None:
    gpus = [(f"GPU {rank % 4} of node{rank // 4}", 2**30 * (rank % 2) * rank) for rank in range(16)]
    (line,) = shared_gpus.shared_gpus(gpus)
    assert line.startswith(
        "warning: other programs, or a run that was just killed, hold 1.0 GiB or more of GPU 1 of "
        "node0 (rank 1), 3.0 GiB or more"
    )
    assert "GPU 3 of node1 (rank 7), ...: this run may be slow" in line
    assert "rank 9" not in line


def test_a_run_tells_it_before_its_first_iteration(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "gpu_of_this_rank", lambda: ("GPU 5 of here", 3 * 2**30))
    pretrain(make_config(None, train_iters=3))
    lines = capsys.readouterr().out.splitlines()
    (told,) = (line for line in lines if "killed, hold 3.0 GiB" in line)
    first = next(line for line in lines if "iteration" in line and "1/3" in line)
    assert lines.index(told) < lines.index(first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_another_program_holds_is_counted_and_what_this_one_holds_is_not() -> None:
    own = torch.empty(6 * 2**30, dtype=torch.uint8, device="cuda")
    _, before = shared_gpus.gpu_of_this_rank()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        name, others = shared_gpus.gpu_of_this_rank()
        other.communicate("\n")
    assert own.numel() == 6 * 2**30
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    assert name.split()[0] in listed.stdout
    # the margin of its own context is its too
    assert 2 * 2**30 < others - before <= 5 * 2**30
