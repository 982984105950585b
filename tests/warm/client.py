"""Stands for one program that runs in a fork of the server: `SOCKET MODULE ARGUMENTS...`.

Started without site packages, so that it costs hundredths of a second.
"""

import json
import os
import signal
import socket
import sys


def main() -> int:
    """Ask for the program, hand on signals, return its exit status."""
    path, module, *arguments = sys.argv[1:]
    others: list[int] = []
    if module == "python":
        module, arguments = _module_of(arguments)
    elif module == "code":
        module, *arguments = arguments[arguments.index("-c") :]
        others = _inherited()
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    handed_on = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
    ignored = [int(number) for number in handed_on if signal.getsignal(number) == signal.SIG_IGN]
    request = json.dumps(
        {
            "module": module,
            "arguments": arguments,
            "folder": os.getcwd(),
            "environment": dict(os.environ),
            "ignored": ignored,  # as a program would inherit it
            "descriptors": [0, 1, 2, *others],
        }
    ).encode()
    # A signal that comes before the program runs waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, handed_on)
    socket.send_fds(server, [len(request).to_bytes(8, "little")], [0, 1, 2, *others])
    server.sendall(request)
    pid = int.from_bytes(_received(server), "little")
    for number in handed_on:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handed_on)
    status = int.from_bytes(_received(server), "little", signed=True)
    if status >= 0:
        return status
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)  # end as the program did
    os.kill(os.getpid(), -status)
    return 128 - status


def _module_of(arguments: "list[str]") -> "tuple[str, list[str]]":
    """``python -u -m MODULE ...`` or a file of this project; all else is Python's own business."""
    words = [word for word in arguments if word != "-u"]
    if words[:1] == ["-m"] and words[1] in ("megatron_ultralong", "torch.distributed.run"):
        return words[1], words[2:]
    if words and words[0].endswith("serve.py"):
        return words[0], words[1:]
    python = os.environ["WARM_PYTHON"]
    os.execv(python, [python, *arguments])
    raise AssertionError


def _inherited() -> "list[int]":
    """Descriptors beside the three of every program that the caller has passed on."""
    named = [int(name) for name in os.listdir("/proc/self/fd")]
    return [number for number in named if number > 2 and os.path.exists(f"/proc/self/fd/{number}")]


def _received(server: socket.socket) -> bytes:
    data = b""
    while len(data) < 8:
        piece = server.recv(8 - len(data))
        if not piece:
            sys.exit("the server of warm programs is gone")
        data += piece
    return data


sys.exit(main())
