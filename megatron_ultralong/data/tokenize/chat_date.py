"""The date that chat templates write into every conversation."""

from __future__ import annotations

import contextlib
import datetime

DATE = "26 Jul 2024"
"""Date that Llama 3.1's template writes where it is given none."""

TODAY = "today"
LAYOUT = "%d %b %Y"
"""As Llama's templates write it."""


def resolved_date(date: str, today: datetime.date) -> str:
    """The text to write: ``today`` becomes ``28 Nov 2026``, any other stays as it is."""
    return today.strftime(LAYOUT) if date == TODAY else date


def date_of(text: str) -> datetime.date | None:
    """The date that a text states, for templates that write it in a layout of their own.

    ``26 Jul 2024`` and ``2024-07-26`` are read; None for any other text.
    """
    for layout in (LAYOUT, "%Y-%m-%d"):
        with contextlib.suppress(ValueError):
            return datetime.datetime.strptime(text, layout).date()
    return None
