"""Amounts and rates for people: ``50.3 MB/s``, ``12,345 tokens``."""

_BYTES = ("B", "kB", "MB", "GB", "TB", "PB")


def quantity(amount: float, unit: str) -> str:
    """An amount with its unit, in three digits or in full where it is longer.

    Bytes (``B``) are scaled by powers of 1000, others are not: ``50.3 MB``, ``0.0125 it``,
    ``1,234,567 tokens``.
    """
    if unit == "B":
        step = 0
        while abs(amount) >= 999.5 and step < len(_BYTES) - 1:
            amount /= 1000
            step += 1
        return f"{_digits(amount)} {_BYTES[step]}"
    return f"{_digits(amount)} {unit}"


def rate(amount: float, unit: str, seconds: float) -> str:
    """What was done in some seconds, as a rate: ``50.3 MB/s``."""
    return f"{quantity(amount / max(seconds, 1e-9), unit)}/s"


def duration(seconds: float) -> str:
    """``12 s``, ``3 min 5 s``, ``2 h 10 min``, ``3 d 4 h``; ``?`` for one that is not finite."""
    if not seconds < 1e9:
        return "?"
    whole = max(round(seconds), 0)
    for size, unit, below, lower in (
        *((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")),
    ):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit}" + (f" {rest} {lower}" if rest else "")
    return f"{whole} s"


def _digits(number: float) -> str:
    """Three digits, or all before the point: ``1,234``, ``50.3``, ``0.0125``."""
    if abs(number) >= 99.95 or number == 0:
        return f"{number:,.0f}"
    text = f"{number:.3g}"
    return text if "e" not in text else f"{number:.1e}"
