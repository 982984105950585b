"""What is wrong with pages that were measured, in words."""

from __future__ import annotations

from collections.abc import Sequence

from .browser import Width

SCREEN, PHONE = 1280, 390
"""Pixels, as CSS counts them."""


def wrong(found: Sequence[Width]) -> list[str]:
    """A line for every page that is too wide, and every table that a wide screen does not hold."""
    lines = []
    for each in found:
        where = f"{each.page} at {each.width}"
        if each.overflows:
            lines.append(f"{where}: {each.scroll_width} pixels wide: {'; '.join(each.outside[:3])}")
        if each.width == SCREEN:
            lines += [f"{where}: {table}" for table in each.scrolling]
    return lines


def summary(found: Sequence[Width]) -> str:
    """What was seen, in one line."""
    parts = []
    for width in sorted({each.width for each in found}, reverse=True):
        seen = [each for each in found if each.width == width]
        tables = sum(len(each.scrolling) for each in seen)
        over = sum(each.overflows for each in seen)
        parts.append(
            f"{width} pixels: {over} of {len(seen)} pages overflow, {tables} tables scroll"
        )
    return "; ".join(parts)
