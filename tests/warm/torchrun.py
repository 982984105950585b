"""torchrun without its imports' seconds, and without those of its ranks.

It is forked from the server of :mod:`tests.ranks`, and forks its ranks from itself where it would
start an interpreter for each. All else is its own: its store, its signals, its restarts, its end,
and the ranks are its children, each in a session of its own.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from tests.warm.server import open_streams, run_module


def torchrun(said: Path, words: list[str], environment: dict[str, str]) -> None:
    """Be ``torchrun words...`` from here on, in a session of its own, and write to ``said``."""
    os.setsid()
    output = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    SubprocessHandler._popen = _fork
    _be("torch.distributed.run", words, environment)


def _fork(self: SubprocessHandler, args: tuple[str, ...], env: dict[str, str]) -> _Rank:
    assert self._stdout is self._stderr is None, "ranks write where torchrun writes"
    return _Rank(args, env=env)


class _Rank(subprocess.Popen[bytes]):
    """A child that runs ``python -u -m MODULE ARGUMENTS...`` in a fork of this process."""

    def _execute_child(self, args: tuple[str, ...], *others: Any) -> None:  # type: ignore[override]
        environment = others[5]
        self.pid = os.fork()
        if self.pid:
            self._child_created = True
            return
        try:
            os.setsid()
            # As after a start: no file, handler or thing to do at the end is left of the parent.
            null = os.open(os.devnull, os.O_RDWR)
            for name in os.listdir("/proc/self/fd"):
                if int(name) > 2:
                    os.dup2(null, int(name))
            for number in signal.valid_signals():
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            atexit._clear()
            Path("/proc/self/comm").write_text(f"rank {environment['RANK']}")
            module = args.index("-m") + 1
            _be(args[module], list(args[module + 1 :]), environment)
        except BaseException:  # it must not continue as a second agent
            traceback.print_exc()
            os._exit(1)


def _be(module: str, arguments: list[str], environment: dict[str, str]) -> None:
    open_streams()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    run_module(module)
