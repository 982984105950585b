"""Where NoLiMa's needle and distractor stand in a book.

Facts from adobe-research/NoLiMa, ``data/book_haystack.py``: a window of ``context_length`` tokens
is laid over the book so that a line's end is at the depth asked for, and the needle stands behind
it as a line of its own.
"""

import numpy as np
import numpy.typing as npt

from megatron_ultralong.evaluation.local.conversation import check_text
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError

_FREE_ZONE = 0.2
"""Share of the window on both sides of the needle in which no distractor stands, twice."""
_SHORT = 500
"""Tokens of a window below which distractors have fixed places."""


class Book:
    """A text, in tokens, that needles are put into; ``name`` is for messages."""

    def __init__(self, name: str, text: str, tokenizer: PromptTokenizer) -> None:
        check_text(text, name)
        self.name, self._tokenizer = name, tokenizer
        self._tokens = tokenizer.encode(text)
        kinds, places = np.unique(self._tokens, return_inverse=True)
        ends = np.asarray(["\n" in tokenizer.decode([kind]) for kind in kinds], np.bool_)
        lines = np.flatnonzero(ends[places]) if kinds.size else np.zeros(0, np.int64)
        self._positions: npt.NDArray[np.int64] = np.concatenate([[0], lines]).astype(np.int64)
        """Of the book's start and of tokens that hold a line's end."""

    def window(self, context_length: int, depth: float) -> tuple[int, int, int]:
        """Start, the token of the line's end, and end of a window of so many tokens, of which
        the share ``depth`` stands before the needle.

        Raises:
            InputError: the book has no such window.
        """
        delta = self._positions / (context_length + 1) - depth
        behind = np.flatnonzero(delta >= 0)
        position = int(self._positions[behind[0]]) if behind.size else 0
        start = position - int(np.round(context_length * depth))
        end = start + context_length
        if start < 0 or end > self._tokens.size:
            raise InputError(
                f"{self.name} has {self._tokens.size:,} tokens, too few or too long lines for "
                f"{context_length:,} of them with a line's end at {100 * depth:g} %: choose "
                "shorter --lengths"
            )
        return start, position, end

    def place(self, needle: str, context_length: int, depth: float) -> str:
        """A window with the needle as a line; see :meth:`window`."""
        start, position, end = self.window(context_length, depth)
        before = self._tokenizer.decode(self._tokens[start : position + 1].tolist())
        before = before[: max(before.rfind("\n"), 0)]
        after = self._tokenizer.decode(self._tokens[position + 1 : end].tolist())
        return f"{before} {needle}\n{after}"

    def place_both(
        self, needle: str, distractor: str, context_length: int, depth: float, other: float
    ) -> str:
        """As :meth:`place`, with a distractor at the depth ``other``.

        Raises:
            InputError: the text before the distractor does not stand once around the needle.
        """
        reach, back = (50, 49) if context_length >= _SHORT else (25, 23)
        text = self.place(distractor, context_length, other)
        at = text.index(distractor)
        mark = text[max(at - reach, 0) : max(at - 1, 0)]
        text = self.place(needle, context_length, depth)
        if not mark or text.count(mark) != 1:
            raise InputError(
                f"{self.name} has no single place for the distractor at {100 * other:g} % of "
                f"{context_length:,} tokens: upstream's program ends there, too; choose other "
                "--lengths or --num-depths"
            )
        at = text.index(mark) + back
        return f"{text[:at]} {distractor}\n{text[at:]}"


def distractor_depth(draw: np.random.RandomState, context_length: int, depth: float) -> float:
    """Where the distractor of a needle at ``depth`` stands; draws one number."""
    left = max(0.0, depth - 2 * _FREE_ZONE)
    right = max(0.0, 1 - (depth + 2 * _FREE_ZONE))
    place = float(draw.uniform(0, left + right))
    if context_length < _SHORT:
        return 0.7 if depth < 0.6 else 0.6 if depth > 0.75 else 0.5
    return depth + _FREE_ZONE + (place - left) if place > left else place + _FREE_ZONE
