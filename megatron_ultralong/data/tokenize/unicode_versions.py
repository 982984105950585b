"""Characters that Python's version of Unicode does not know, and the libraries' versions may."""

import functools
import sys
import unicodedata

import numpy as np
import numpy.typing as npt
import regex  # type: ignore[import-untyped]

BLOCK = 1 << 20
"""Characters that are looked up at once."""


def has_unknown(text: str, *, are_signs_alike: bool = False) -> bool:
    """Whether a text has a character that Python's version of Unicode does not know.

    Python 3.10 to 3.13 know versions 13 to 15.1, the libraries later ones. To those that know a
    character it is the same, a letter or a mark, and composed in the same way.

    Args:
        text: of any length.
        are_signs_alike: symbols and punctuation do not count, such as the emoji of a new version.
    """
    if text.isascii():
        return False
    parts = (text[start : start + BLOCK] for start in range(0, len(text), BLOCK))
    codes = (np.frombuffer(part.encode("utf-32-le", "surrogatepass"), "<u4") for part in parts)
    unknown = unassigned(are_signs_alike=are_signs_alike)
    return any(bool(unknown[each].any()) for each in codes)


@functools.cache
def unassigned(*, are_signs_alike: bool) -> npt.NDArray[np.bool_]:
    """Of every code point, whether Python knows no character of it; shape [1,114,112].

    ``are_signs_alike``: whether it is no symbol or punctuation to ``regex`` either.
    """
    codes = range(sys.maxunicode + 1)
    found = np.fromiter((unicodedata.category(chr(code)) == "Cn" for code in codes), np.bool_)
    if are_signs_alike:
        known = regex.findall(r"[\p{S}\p{P}]", "".join(map(chr, np.flatnonzero(found))))
        found[[ord(sign) for sign in known]] = False
    return found
