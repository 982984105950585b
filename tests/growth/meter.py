"""Steps of a function, counted: the same on every machine, however busy it is."""

from __future__ import annotations

import functools
import gc
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple


class Steps(NamedTuple):
    """What a call took."""

    lines: int
    """Lines of this project that ran, in all threads; a turn of a comprehension or a generator is
    one."""
    kilobytes: int
    """Memory that Python and numpy asked for, given back since or not, in libraries too: what is
    copied in one line, without a loop that could be seen."""
    opened: int
    """Bytes of the files opened: whoever opens a file again may read it again."""


_active = False
_opened: list[str] = []
_IN_WINDOWS = ".distcp"
"""Files that are opened for a part whose place is known: nothing else of them is read."""
_OURS = ("/megatron_ultralong/", "/tests/")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _active and event == "open" and isinstance(arguments[0], str | bytes):
        name = os.fsdecode(arguments[0])
        if not name.endswith(_IN_WINDOWS):
            _opened.append(name)


sys.addaudithook(_audit)  # there is no way to take one away: it is asleep outside of a count


def count(function: Callable[[], object]) -> Steps:
    """Call ``function`` and count its steps."""
    global _active
    lines, num_bytes, last = 0, 0, 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines, num_bytes, last
        if event == "call" and not _is_ours(frame.f_code.co_filename):
            return None
        if event == "line":
            lines += 1
        # The most that the line before held at a time, over what it began with.
        num_bytes += max(tracemalloc.get_traced_memory()[1] - last, 0)
        tracemalloc.reset_peak()
        last = tracemalloc.get_traced_memory()[0]
        return trace

    gc.collect()
    gc.disable()  # when it runs depends on what ran before
    _opened.clear()
    before = sys.gettrace()
    tracemalloc.start()
    _active = True
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
        threading.settrace(before)  # type: ignore[arg-type]
        _active = False
        num_bytes += max(tracemalloc.get_traced_memory()[1] - last, 0)
        tracemalloc.stop()
        gc.enable()
    return Steps(lines, num_bytes // 1024, sum(_size(path) for path in _opened))


@functools.cache
def _is_ours(path: str) -> bool:
    return any(part in path for part in _OURS)


def _size(path: str) -> int:
    return os.stat(path).st_size if os.path.isfile(path) else 0
