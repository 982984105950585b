"""No verb ends for its output: closed, full, gone, slow, or without the characters of a text."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command_line import pretrain_words, write_inputs
from tests.patience import patience

ROOT = Path(__file__).parent.parent
PROGRAM = [sys.executable, "-m", "megatron_ultralong"]
INSPECT = [*PROGRAM, "convert", "inspect"]
LOST = "standard output cannot be written (No space left on device)"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    write_inputs(folder)
    return folder


def shell(line: str, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        encoding="latin-1",
        timeout=patience(120),
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_text_can_be_printed(inputs: Path, tmp_path: Path, encoding: str) -> None:
    """A result, and a message, of characters that the encoding lacks."""
    good, bad = (tmp_path / os.fsdecode("жπé".encode() + end) for end in (b"", b"\xff"))
    good.symlink_to(inputs / "megatron")
    bad.mkdir()
    told, error = (
        shell('cd "$0"; "$@"', tmp_path, *INSPECT, folder.name, PYTHONIOENCODING=encoding)
        for folder in (good, bad)
    )
    name = "жπé".encode(encoding, "backslashreplace").decode("latin-1")
    assert (told.returncode, told.stderr) == (0, "")
    assert f"{name} " in told.stdout
    assert error.returncode == 2
    assert error.stderr.startswith("ultralong: error: ")
    assert error.stderr.count("\n") == 1
    assert rf"{name}\udcff is not" in error.stderr


def test_a_full_output_is_an_error_in_one_message() -> None:
    """Of what a command is asked for nothing may be lost without a word."""
    for words in (["--version"], ["help", "plan"], ["plan", "llama3.1-8b-1m", "--gpus", "32"]):
        done = shell('"$@" > /dev/full', "", *PROGRAM, *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"ultralong: error: {LOST}, and what was printed is lost: ")
        assert done.stderr.count("\n") == 1


def test_a_slow_reader_gets_all() -> None:
    """A pipe that another program has set not to wait is waited for."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = subprocess.Popen([*PROGRAM, "pretrain", "--help-all"], stdout=writer)
    os.close(writer)
    time.sleep(1.0)
    got = b"".join(iter(lambda: os.read(reader, 4096), b""))
    assert process.wait(patience(60)) == 0
    whole = subprocess.run([*PROGRAM, "pretrain", "--help-all"], capture_output=True, check=True)
    assert got == whole.stdout
    assert len(got) > 8192
    os.close(reader)


TWO = ("--ranks", "2", "--context-parallel-size", "2")
ONE = ("--context-parallel-size", "1")


@pytest.mark.parametrize(
    ("streams", "ranks"),
    [
        *[("> /dev/full", ONE), ("> /dev/full 2>&1", ONE), ("2> /dev/full", ONE)],
        *[("> /dev/full", TWO), ("> /dev/full 2>&1", TWO), (">&- 2>&- <&-", TWO)],
    ],
)
def test_a_run_outlives_its_output(
    warm_environment: dict[str, str],
    inputs: Path,
    tmp_path: Path,
    streams: str,
    ranks: tuple[str, ...],
) -> None:
    """Its checkpoint is there, and what went to its log on the disk."""
    words = pretrain_words(inputs, "--train-iters", "3", *ranks)
    words = tuple(word.replace(str(inputs / "saved"), str(tmp_path / "run")) for word in words)
    program = PROGRAM if "&-" in streams else ["ultralong"]  # warm ones need all three
    done = shell(f'"$@" {streams}', "", *program, *words, **warm_environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "latest_checkpointed_iteration.txt").read_text() == "3"
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3
    if streams == "> /dev/full":
        assert done.stderr.count(f"WARNING: {LOST}: its lines are lost") == 1
        assert "Traceback" not in done.stderr
