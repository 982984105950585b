"""Forks itself for every program that a client asks for; see :mod:`tests.warm`.

::

    python -m tests.warm.server SOCKET PID
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
import types
from pathlib import Path
from typing import Any


class Server:
    """Takes requests until the process ``owner`` is gone."""

    def __init__(self, path: str, owner: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._selector.register(os.pidfd_open(owner), selectors.EVENT_READ, lambda _: os._exit(0))
        self._clients: dict[int, tuple[socket.socket, int]] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def serve(self) -> None:
        """Fork for every client, tell it the exit status, kill what a lost client leaves."""
        while True:
            for key, _ in self._selector.select():
                key.data(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        message, descriptors, _, _ = socket.recv_fds(client, 8, 64)
        rest = int.from_bytes(message, "little")
        data = b""
        while len(data) < rest:
            data += client.recv(rest - len(data))
        request = json.loads(data)
        pid = os.fork()
        if pid == 0:
            self._become(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        client.sendall(pid.to_bytes(8, "little"))
        end = os.pidfd_open(pid)
        self._clients[end] = (client, pid)
        self._selector.register(end, selectors.EVENT_READ, self._ended)
        self._selector.register(client, selectors.EVENT_READ, self._lost)

    def _ended(self, end: int) -> None:
        client, pid = self._clients.pop(end)
        self._selector.unregister(end)
        os.close(end)
        _, wait_status = os.waitpid(pid, 0)
        status = os.waitstatus_to_exitcode(wait_status)
        with contextlib.suppress(OSError):
            client.sendall(status.to_bytes(8, "little", signed=True))
        with contextlib.suppress(KeyError):
            self._selector.unregister(client)
        client.close()

    def _lost(self, client: socket.socket) -> None:
        """The client was killed: so is what it stands for."""
        self._selector.unregister(client)
        for other, pid in self._clients.values():
            if other is client:
                os.kill(pid, signal.SIGKILL)

    def _become(self, request: dict[str, Any], descriptors: list[int]) -> None:
        self._selector.close()
        self._listener.close()
        targets = request["descriptors"]
        above = max(targets) + 1
        aside = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above) for descriptor in descriptors]
        for descriptor in descriptors:
            os.close(descriptor)
        for target, descriptor in zip(targets, aside, strict=True):
            os.dup2(descriptor, target)
            os.close(descriptor)
        open_streams()
        for number in request["ignored"]:
            signal.signal(number, signal.SIG_IGN)
        os.environ.clear()
        os.environ.update(request["environment"])
        _set_malloc()
        os.chdir(request["folder"])
        sys.argv = [request["module"], *request["arguments"]]
        run_module(request["module"])


def _set_malloc() -> None:
    """What the C library reads of its environment when a program starts."""
    for name, number in (("MALLOC_TRIM_THRESHOLD_", -1), ("MALLOC_MMAP_THRESHOLD_", -3)):
        if name in os.environ:
            ctypes.CDLL(None).mallopt(number, min(int(os.environ[name]), (1 << 31) - 1))


def open_streams() -> None:
    """New ``sys.stdin``, ``sys.stdout`` and ``sys.stderr``, of whatever 0, 1 and 2 are now."""
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        setattr(sys, name, os.fdopen(os.dup(number), "r" if number == 0 else "w", buffering=1))


def run_module(module: str) -> None:
    """Run a module, a file or ``-c CODE`` as ``python`` does, and end with its exit status."""
    status = 0
    try:
        if module == "-c":
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(sys.argv.pop(1), vars(sys.modules["__main__"]))
        elif module.endswith(".py"):
            runpy.run_path(module, run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # As the interpreter does at its end: wait for threads, run what is registered.
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    os._exit(status)


def main() -> None:
    """Import everything, then serve."""
    import torch

    torch.set_num_threads(1)
    importlib.import_module("tests.warm.imports")
    import atexit

    atexit._clear()  # those of this server are not the programs'
    aside = sys.argv[1] + ".partial"
    server = Server(aside, int(sys.argv[2]))
    Path(aside).rename(sys.argv[1])
    server.serve()


if __name__ == "__main__":
    main()
