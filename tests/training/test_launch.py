"""``--ranks N``: what it refuses, what it starts, and how a job ends.

Ranks are programs of a line here, told apart by their RANK, as the ranks of ``ultralong`` are; of
those themselves: test_launched_verbs.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megatron_ultralong.checkpoint.disk.folder import LATEST_FILE
from megatron_ultralong.program import launch
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.exit_status import STATUS_VARIABLE
from megatron_ultralong.program.launch import run_ranks, take_ranks
from megatron_ultralong.training.earlier_start import way_on
from tests.patience import patience

Ended = tuple[int, str]


def write_ranks(folder: Path, *programs: str) -> Path:
    """A stand-in for Python, which runs the shell program of its rank."""
    left = 'say() { printf \'{"message": {"message": "%s"}}\' "$1" > "$TORCHELASTIC_ERROR_FILE"; }'
    cases = "\n".join(f"{number}) {text} ;;" for number, text in enumerate(programs))
    path = folder / "python"
    path.write_text(
        f"#!/bin/bash\n{left}\necho $$ > {folder}/pid-$RANK\ncase $RANK in\n{cases}\nesac\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Status and message of a job of these shell programs; nothing of it is left."""

    def of(*programs: str) -> Ended:
        monkeypatch.setenv("PYTHON_EXEC", str(write_ranks(tmp_path, *programs)))
        status = run_ranks(["pretrain", "small"], len(programs), saves=True)
        pids = [int((tmp_path / f"pid-{rank}").read_text()) for rank in range(len(programs))]
        assert not [pid for pid in pids if psutil.pid_exists(pid)]
        return status, capfd.readouterr().err

    return of


@pytest.mark.parametrize(
    ("programs", "status", "message"),
    [
        (("exit 0", "sleep 0.2"), 0, ""),
        (("sleep 600", "say wrong; exit 2"), 2, "wrong\n"),
        (("sleep 0.3; say 'of 0'; exit 2", "say 'of 1'; exit 2"), 2, "of 0\n"),
        (("trap '' TERM; sleep 600", "say 'Traceback: x\\n'; exit 1"), 1,
         "Traceback: x\nultralong: rank 1 failed with the error above\n"),
        (("say stopped; exit 75", "sleep 0.2; exit 75"), 75, "stopped\n"),
        (("exit 65", "exit 65"), 65, ""),
        (("sleep 0.5; exit 69", "kill -9 $$"), 69, "rank 1 (process .*) was ended by SIGKILL: all"),
        (("sleep 600", "kill -11 $$"), 69, "rank 1 (process .*) was ended by SIGSEGV: all ranks"),
        (("exit 0", "exit 7"), 7, ""),
        # killed for memory: its peer fails for the lack of it, before or after the launcher looks
        (("sleep 0.3; say 'Traceback: gloo\\n'; exit 1", "kill -9 $$"), 69,
         "rank 1 (process .*) was ended by SIGKILL: all"),
        (("say 'Traceback: gloo\\n'; exit 1", "sleep 0.3; kill -9 $$"), 69, "was ended by SIGKILL"),
        (("say 'Traceback: x\\n'; exit 1", "sleep 0.5; kill -6 $$"), 1, "Traceback: x\n.*rank 0 "),
        (("trap '' TERM; sleep 600", "exit 1"), 1,
         "rank 1 (process .*) ended with status 1 and without a message"),
        (("sleep 600", "exit 141"), 141, ""),
        (("sleep 600", "say interrupted; exit 130"), 130, "interrupted\n"),
    ],
)  # fmt: skip
def test_how_a_job_ends(
    run: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    programs: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    monkeypatch.setattr(launch, "_LOST_SECONDS", 1.0)
    monkeypatch.setenv(STATUS_VARIABLE, str(tmp_path / "status"))
    found, said = run(*programs)
    assert found == status
    begin, _, end = message.partition(".*")
    assert begin in said
    assert end in said
    assert said.count("\n") <= 2
    assert (tmp_path / "status").read_text() == f"{status}\n"


def test_a_lost_rank_says_from_what_the_command_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A training from its newest checkpoint; another verb begins again."""
    monkeypatch.setattr(launch, "_LOST_SECONDS", 1.0)
    save = tmp_path / "run"
    save.mkdir()
    cases = [("", "no --save: the same command begins"), (str(save), "holds no checkpoint yet: ")]
    for words, part in cases:
        assert part in way_on(words)
    (save / LATEST_FILE).write_text("420")
    monkeypatch.setenv("PYTHON_EXEC", str(write_ranks(tmp_path, "kill -9 $$")))
    assert run_ranks(["pretrain"], 1, saves=True, way_on=lambda: way_on(str(save))) == 69
    said = capfd.readouterr().err
    assert said.endswith(
        "was ended by SIGKILL: all ranks have ended (`dmesg` says whether memory ran out); the "
        f"same command resumes from iteration 420 in {save}\n"
    )
    assert run_ranks(["generate"], 1, saves=False) == 69
    assert capfd.readouterr().err.endswith("; start it again\n")


def test_ranks_have_what_torchrun_gives(run: Callable[..., Ended], tmp_path: Path) -> None:
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS RES_OPTIONS"
    text = f"printenv {names} > {tmp_path}/env-$RANK; echo $MASTER_PORT >> {tmp_path}/port; "
    assert run(text + "exit 0", text + "exit 0", text + "exit 0")[0] == 0
    for rank in range(3):
        found = (tmp_path / f"env-{rank}").read_text().split()
        assert found[:5] == [str(rank), str(rank), "3", "3", "127.0.0.1"]
        assert int(found[5]) >= 1
        assert found[6:] == ["timeout:1", "attempts:1"]  # no name server: 1 s, not 10 s
    ports = set((tmp_path / "port").read_text().split())
    assert len(ports) == 1
    assert 1024 < int(ports.pop()) < 65536


_LAUNCHER = """
import sys
from megatron_ultralong.program.launch import run_ranks
sys.exit(run_ranks(["pretrain", "small"], 2, saves=sys.argv[1] == "saves"))
"""


def start(folder: Path, saves: bool, *programs: str) -> subprocess.Popen[str]:
    """A launcher of its own, whose two ranks are up."""
    process = subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER, "saves" if saves else "loses"],
        env={**os.environ, "PYTHON_EXEC": str(write_ranks(folder, *programs))},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + patience(30)
    while not all((folder / f"up-{rank}").exists() for rank in (0, 1)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def until_gone(folder: Path) -> None:
    pids = [int((folder / f"pid-{rank}").read_text()) for rank in (0, 1)]
    deadline = time.monotonic() + patience(30)
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, "a rank outlives its launcher"
        time.sleep(0.02)


def waiting(folder: Path, name: str) -> str:
    """A rank that notes a signal and ends as a training does."""
    text = f"trap 'echo {name} >> {folder}/got-$RANK; say saved; exit 75' {name}; "
    return text + f"touch {folder}/up-$RANK; while true; do sleep 0.05; done"


@pytest.mark.parametrize("name", ["TERM", "INT", "USR1"])
def test_signals_are_handed_on(tmp_path: Path, name: str) -> None:
    process = start(tmp_path, True, waiting(tmp_path, name), waiting(tmp_path, name))
    process.send_signal(getattr(signal, f"SIG{name}"))
    _, said = process.communicate(timeout=patience(60))
    assert process.returncode == 75
    assert said == "saved\n"
    for rank in (0, 1):
        assert (tmp_path / f"got-{rank}").read_text() == f"{name}\n", "each got it once"
    until_gone(tmp_path)


def test_a_signal_that_nobody_takes_is_the_status(tmp_path: Path) -> None:
    rank = f"touch {tmp_path}/up-$RANK; exec sleep 600"
    process = start(tmp_path, False, rank, rank)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=patience(60))
    assert (process.returncode, said) == (143, "ultralong: interrupted\n")


@pytest.mark.parametrize("num_signals", [1, 2])
def test_ranks_that_hang_are_interrupted(tmp_path: Path, num_signals: int) -> None:
    """In a call that no signal interrupts; the peer of one that ended has an error for that."""
    hangs = f"trap '' INT TERM; touch {tmp_path}/up-$RANK; while true; do sleep 0.05; done"
    fails = f"trap 'say Traceback; exit 1' INT; touch {tmp_path}/up-$RANK; "
    fails += "while true; do sleep 0.05; done"
    process = start(tmp_path, False, hangs, fails if num_signals == 1 else hangs)
    begin = time.monotonic()
    for _ in range(num_signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    _, said = process.communicate(timeout=patience(60))
    assert (process.returncode, said) == (130, "ultralong: interrupted\n")
    assert time.monotonic() - begin < patience(8 if num_signals == 1 else 4)
    until_gone(tmp_path)


@pytest.mark.parametrize("saves", [True, False])
def test_ranks_do_not_outlive_a_killed_launcher(tmp_path: Path, saves: bool) -> None:
    process = start(tmp_path, saves, waiting(tmp_path, "TERM"), waiting(tmp_path, "TERM"))
    process.kill()
    process.communicate(timeout=patience(60))
    until_gone(tmp_path)
    got = [(tmp_path / f"got-{rank}").exists() for rank in (0, 1)]
    assert got == [saves, saves], "a training is asked to save"


@pytest.mark.parametrize("words", [["--ranks", "3", "-x"], ["-x", "--ranks=3"]])
def test_the_number_is_taken_out(words: list[str]) -> None:
    assert take_ranks(words) == (3, ["-x"])
    assert take_ranks(["--lr", "3"]) == (None, ["--lr", "3"])


@pytest.mark.parametrize("value", ["0", "-1", "two", "", "1025", "2.0", "9" * 50])
def test_a_wrong_number_is_refused(value: str) -> None:
    with pytest.raises(InputError, match=r"--ranks must be between 1 and 1024, not "):
        take_ranks(["--ranks", value])


@pytest.mark.parametrize(
    ("visible", "number"),
    [("", 0), ("-1", 0), ("0,1,-1,2", 2), ("0, 3", 2), ("GPU-8932f937,MIG-5,-1", 2)],
)
def test_gpus_are_counted_as_cuda_does(
    monkeypatch: pytest.MonkeyPatch, visible: str, number: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert launch._num_gpus() == number
    assert take_ranks(["--ranks", str(number or 7)])[0] == (number or 7)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"RANK": "1", "WORLD_SIZE": "4"},
            r"--ranks 2 starts ranks.*\(rank 1 of 4\): leave",
        ),
        ({"SLURM_STEP_NUM_TASKS": "8"}, r"already part of a job \(one of 8 tasks of srun\)"),
        ({"CUDA_VISIBLE_DEVICES": "3"}, "is more than the 1 GPU of this machine"),
    ],
)
def test_it_starts_no_ranks_of_ranks(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        take_ranks(["--ranks", "2"])
