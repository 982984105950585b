"""Amounts as people read and write them: ``50.3 MB/s``, ``12,345 tokens``; ``512K``, ``2,048``."""

import dataclasses
import re
from collections.abc import Mapping
from fractions import Fraction

from megatron_ultralong.program.errors import InputError, counted

_BYTES = ("B", "kB", "MB", "GB", "TB", "PB")
_AMOUNT = re.compile(r"(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?\s?([A-Za-z]*)", re.ASCII)
_LONGEST = 40
"""Characters of an amount."""


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
    """How users write the numbers of a field: with commas, and with a letter for the thousands.

    ``seq_length: Annotated[int, Range(2), LENGTH]`` takes 524288, 524,288 and 512K from flags and
    files. tests/test_quantity.py fails by name for a number of tokens without one.
    """

    factors: Mapping[str, int]
    """By the letters behind a number; their case does not count."""
    help: str
    """An example, a sentence."""

    def plain(self, text: str, name: str) -> str:
        """``512K -> 524288``; a text without letter and commas as it is.

        Raises:
            InputError: ``name`` cannot be that: the letter is unknown, or it is part of a token.
        """
        found = _AMOUNT.fullmatch(text) if len(text) <= _LONGEST else None
        if not found or not (found[3] or "," in text):
            return text  # the parser of numbers reads it, or says what is wrong
        factors = {"": 1, **{letters.lower(): factor for letters, factor in self.factors.items()}}
        factor = factors.get(found[3].lower())
        amount = Fraction(found[1].replace(",", "") + (found[2] or "")) * (factor or 0)
        if factor is None or amount.denominator != 1:
            raise InputError(
                f"{name} must be a whole number, plain, with commas, or with one of "
                f"{', '.join(self.factors)}, not {text!r}: {self.help}"
            )
        return str(amount)


LENGTH = Unit({"K": 2**10, "M": 2**20, "G": 2**30}, "512K is 524,288")
"""Tokens of a row, a tile, a context: the field's powers of 1,024 (128K, 1M)."""
TOKENS = Unit({"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}, "1B is 1,000,000,000")
"""Tokens of a corpus or a run, as papers count them."""
BYTES = Unit(
    {
        "kB": 10**3,
        "MB": 10**6,
        "GB": 10**9,
        "TB": 10**12,
        "KiB": 2**10,
        "MiB": 2**20,
        "GiB": 2**30,
        "TiB": 2**40,
    },
    "64MB is 64,000,000 and 64MiB 67,108,864",
)


def few_tokens(seq_length: int, positions: int) -> str:
    """A warning of rows below one K for a model of more positions than that; else empty.

    ``128, 8192 -> "warning: rows of 128 tokens, ...; 128K is 131,072"``.
    """
    if not seq_length < LENGTH.factors["K"] < positions:
        return ""
    return (
        f"warning: rows of {counted(seq_length, 'token')}, where the model has {positions:,} "
        f"positions; {seq_length}K is {seq_length * LENGTH.factors['K']:,}"
    )


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


def different(amount: float, other: float, unit: str) -> tuple[str, str]:
    """Two amounts of which a message says that they differ: in full where digits hide it."""
    texts = quantity(amount, unit), quantity(other, unit)
    if texts[0] == texts[1] and amount != other:
        return f"{amount:,} {unit}", f"{other:,} {unit}"
    return texts


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
