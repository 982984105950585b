"""Listening for signals ends, whoever else holds the socket."""

from __future__ import annotations

import os
import signal
import threading

from megatron_ultralong.training.telling.stop import StopRequests


def test_a_forked_process_does_not_keep_the_listener() -> None:
    """It has the socket's other end too, and lives on: a run must be able to end all the same."""
    stop = StopRequests(0.0)
    with stop.listen():
        child = os.fork()
        if not child:
            signal.pause()
            os._exit(0)
    try:
        assert not [thread for thread in threading.enumerate() if thread.name == "signals"]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
