"""Ranks that may open few files: one message before they start, or one where they ran out."""

from __future__ import annotations

import errno
import os
import resource
import sys
from pathlib import Path

import pytest

from megatron_ultralong.program import open_files
from tests.command_line import status_and_output
from tests.training.chats import write_chat_model

SAID = "which is too low: a rank opens more than"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("open_files")
    write_chat_model(folder)
    return folder / "base"


def start(limit: int, hard: int, *words: str) -> tuple[int, str]:
    def narrow() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))

    program = [sys.executable, "-m", "megatron_ultralong", *words]
    return status_and_output(program, 100, preexec_fn=narrow)


@pytest.mark.parametrize("ranks", [(), ("--ranks", "2")])
@pytest.mark.parametrize("limit", [20, 40, open_files.LEAST - 1])
def test_too_few_for_any_rank_are_told_before_one_starts(
    limit: int, ranks: tuple[str, ...], model: Path
) -> None:
    words = ("generate", "--load", str(model), "--prompt", "x", *ranks)
    status, said = start(limit, limit, *words)
    assert status == 2
    assert said.count("\n") == 1
    assert f"the limit of open files (ulimit -n) is {limit}, {SAID} {open_files.LEAST}, " in said
    assert f"`ulimit -n {open_files.ENOUGH}` before the start" in said


@pytest.mark.slow
def test_ranks_that_run_out_end_with_that_message(model: Path) -> None:
    """Here where gloo makes its groups; a trace of its own for each rank."""
    words = ("generate", "--load", str(model), "--prompt", "ab", "--max-new-tokens", "2")
    status, said = start(74, 74, *words, "--precision", "fp32", "--ranks", "2")
    assert status == 2
    assert f"(ulimit -n) is 74, {SAID}" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_low_soft_limit_is_raised(model: Path) -> None:
    words = ("generate", "--load", str(model), "--prompt", "ab", "--max-new-tokens", "2")
    status, said = start(40, 4096, *words, "--precision", "fp32", "--ranks", "2")
    assert status == 0, said
    assert SAID not in said


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (OSError(errno.EMFILE, "x"), True),
        (RuntimeError("[enforce fail at loop.cc:105] epoll_create: Too many open files"), True),
        (ImportError("libx.so: cannot open shared object file: Too many open files"), True),
        (OSError(errno.ENOENT, "x", "file"), False),
        (RuntimeError("x"), False),
    ],
)
def test_which_errors_are_of_it(error: Exception, is_told: bool) -> None:
    assert (SAID in open_files.told(error)) == is_told
    outer = ValueError("y")
    outer.__cause__ = error
    assert (SAID in open_files.told(outer)) == is_told


def test_the_way_out_is_never_a_lower_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20_000, 20_000))
    assert "`ulimit -n 80000` before" in open_files.told(OSError(errno.EMFILE, "x"))


def test_the_limit_of_the_machine_is_another() -> None:
    """Which ``ulimit`` does not change."""
    said = open_files.told(OSError(errno.ENFILE, os.strerror(errno.ENFILE)))
    assert "sysctl fs.file-max" in said
    assert "ulimit" not in said
