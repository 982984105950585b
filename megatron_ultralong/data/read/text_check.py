"""What makes a text unfit to be tokenised."""

from __future__ import annotations

import re

LONG_RUN = 4 << 20
"""Characters of a run that no tokenizer cuts, such as a file of one letter.

All of them merge such a run as one piece, some microseconds and a hundred bytes a character: a run
of 96 million letters took 132 s and 2.5 GB.
"""

_WORD_OR_SPACE = re.compile(r"[^\W_]|\s")


def text_error(text: str) -> str:
    """What is wrong with a text; empty where nothing is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a lone surrogate at character {error.start}, which no UTF-8 text can hold"
    start = long_run(text)
    if start is not None:
        return (
            f"a run of more than {LONG_RUN // 2:,} letters, spaces or signs at character "
            f"{start:,} without anything between them, which tokenizers take as one piece"
        )
    return ""


def long_run(text: str) -> int | None:
    """A character in a run of letters, of white space or of signs alone; None where there is none.

    A run of :data:`LONG_RUN` is found for sure, one under half of it never: it is looked for in
    windows of half the length, each of which is left at the first character of another kind.
    """
    size = LONG_RUN // 2
    for start in range(0, len(text) - size + 1, size):
        window = text[start : start + size]
        if window.isalpha() or window.isspace() or not _WORD_OR_SPACE.search(window):
            return start
    return None
