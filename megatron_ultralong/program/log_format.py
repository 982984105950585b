"""What the program logs, as a terminal may see it."""

from __future__ import annotations

import logging

from megatron_ultralong.program.errors import printable


class PrintableFormatter(logging.Formatter):
    """Messages of logging; control characters are written out, but for those of a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The message as a terminal may see it."""
        return printable(super().formatMessage(record))
