"""The folder of programs, and the server behind them."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.patience import patience

ROOT = Path(__file__).parent.parent.parent
_CLIENT = Path(__file__).with_name("client.py")
_START_SECONDS = 120.0
_MODULES = {
    "ultralong": "megatron_ultralong",
    "torchrun": "torch.distributed.run",
    "python": "python",
    "python3": "python",
    "forked": "code",
}


def write_program(path: Path, words: list[str]) -> None:
    """A program that is ``words``, followed by its own arguments."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)


def warm_programs(folder: Path, owner: int, within: Sequence[str] = ()) -> dict[str, str]:
    """The environment of scripts whose ``ultralong``, ``torchrun`` and ``python -m`` start warm.

    The server behind them is started by the words ``within`` (of namespaces, say), and ends with
    the process ``owner``. Who asks second, for the same folder, gets the first one's.
    """
    path = folder / "server"
    programs = folder / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("TORCHELASTIC", "PET_"))},
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHON_EXEC": str(programs / "python"),  # what torchrun starts its ranks with
        "WARM_PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            for name, module in _MODULES.items():
                words = [sys.executable, "-ISu", str(_CLIENT), str(path), module]
                write_program(programs / name, words)
            _start_server(path, owner, environment, within)
    # A step takes again what the one before it gave back: the kernel need not clear it.
    more = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
    return environment | more


def _start_server(
    path: Path, owner: int, environment: dict[str, str], within: Sequence[str]
) -> None:
    with path.with_suffix(".log").open("wb") as log:
        server = subprocess.Popen(
            [*within, sys.executable, "-m", "tests.warm.server", str(path), str(owner)],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )
    deadline = time.monotonic() + patience(_START_SECONDS)
    while not path.exists():
        assert server.poll() is None, path.with_suffix(".log").read_text()
        assert time.monotonic() < deadline, "the server of warm programs did not start"
        time.sleep(0.05)
