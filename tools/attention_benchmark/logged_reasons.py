"""What a library logs while it decides, kept for those who ask why."""

from __future__ import annotations

import logging
from collections import deque

REASONS = 4  # the last ones


class LoggedReasons(logging.Handler):
    """A handler that keeps the last lines that start with a word, once each."""

    def __init__(self, start: str, but: str) -> None:
        """``but``: lines with it are no reasons."""
        super().__init__(logging.DEBUG)
        self._start, self._but = start, but
        self._lines: deque[str] = deque(maxlen=REASONS)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep its message, in one line."""
        line = " ".join(record.getMessage().replace("|", "/").split())
        if line.startswith(self._start) and self._but not in line and line not in self._lines:
            self._lines.append(line)

    def taken(self) -> str:
        """The lines so far, the last ones; none of them is told again."""
        said = "; ".join(self._lines)
        self._lines.clear()
        return said
