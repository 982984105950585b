"""A program that is forked, and the forkserver of ranks, are as if Python had started them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import FORKED, start_forkserver

CODE = """
import os, sys
os.write(int(sys.argv[1]), b"passed on")
print(__name__, sys.argv[2:], os.getcwd(), os.environ["SAID"], "torch" in sys.modules)
print(sys.stdin.readline(), end="")
sys.exit(7)
"""


@pytest.fixture
def forked(warm_environment: dict[str, str]) -> str:
    """The program; PATH begins with its folder."""
    return str(Path(warm_environment["PATH"].split(":")[0]) / "forked")


def test_code_has_its_words_descriptors_and_status(forked: str, tmp_path: Path) -> None:
    """Also a descriptor that is its own number in the server. Of this process none is replaced."""
    for number in (3, 9, 40):
        receiver, sender = os.pipe()
        passed = fcntl.fcntl(sender, fcntl.F_DUPFD, number + 200)  # the next one that is free
        run = subprocess.run(
            [forked, "-u", "-c", CODE, str(passed), "a", "-b"],
            input="a line\n",
            cwd=tmp_path,
            env={**os.environ, "SAID": "here"},
            pass_fds=[passed],
            capture_output=True,
            text=True,
            check=False,
        )
        os.close(passed)
        os.close(sender)
        assert run.returncode == 7, run.stderr
        assert run.stdout == f"__main__ ['a', '-b'] {tmp_path} here True\na line\n"
        assert os.read(receiver, 100) == b"passed on"
        assert os.read(receiver, 100) == b""  # nobody else holds the other end
        os.close(receiver)


def test_the_forkserver_is_forked_and_spawn_is_not(
    forked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FORKED, forked)
    start_forkserver()
    start_forkserver()  # there is one already
    from multiprocessing import spawn

    assert os.fsdecode(spawn.get_executable()) == sys.executable
