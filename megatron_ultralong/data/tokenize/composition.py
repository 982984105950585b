"""Whether a text is in Unicode's form NFC, whatever version of Unicode a library knows."""

import functools
import sys
import unicodedata

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 20
"""Characters that are looked up at once."""


def is_composed(text: str) -> bool:
    """Whether no library changes a text to bring it into NFC: "é" of one character, not of two.

    It is in that form, and the tables here know each of its characters. Then it is in later
    versions of Unicode too, by its stability policy. An earlier one takes a mark that it does not
    know for a character that nothing is joined to or exchanged with: it changes nothing either.
    """
    if text.isascii():
        return True
    if not unicodedata.is_normalized("NFC", text):
        return False
    parts = (text[start : start + BLOCK] for start in range(0, len(text), BLOCK))
    return not any(_is_unknown(part) for part in parts)


def _is_unknown(text: str) -> bool:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return bool(_unassigned()[codes].any())


@functools.cache
def _unassigned() -> npt.NDArray[np.bool_]:
    """Of every code point, whether it has no character yet."""
    codes = range(sys.maxunicode + 1)
    return np.fromiter((unicodedata.category(chr(code)) == "Cn" for code in codes), np.bool_)
