"""Which token a character of a text is in."""

import bisect
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.tokenize.template_comparison import num_equal
from megatron_ultralong.data.tokenize.tokenising import DocumentTokenizer


def token_at(
    tokenizer: DocumentTokenizer,
    text: str,
    ids: npt.NDArray[np.int32],
    char: int,
    is_behind: bool = False,
) -> int:
    """The first token that a character, or a part of it, is in: transformers' ``char_to_token``.

    Tokens are decoded up to the character. Where that is another text, as with a tokenizer that
    composes accents, the reference says which characters its tokens are of.

    Args:
        tokenizer: made the ids.
        text: not empty.
        ids: of the text, shape [T].
        char: index of the character.
        is_behind: the text stands behind a special token.
    """
    low, high = 0, 1
    try:
        while high < ids.size and _num_covered(tokenizer, text, ids[:high]) <= char:
            low, high = high, 2 * high
        sizes = range(low + 1, min(high, ids.size))

        def covered(size: int) -> int:
            return _num_covered(tokenizer, text, ids[:size])

        return low + bisect.bisect_right(sizes, char, key=covered)
    except _OtherTextError:
        return _in_spans(tokenizer.spans(text, is_behind), text, char)


class _OtherTextError(Exception):
    """Tokens do not decode to the text that they are of."""


def _num_covered(tokenizer: DocumentTokenizer, text: str, ids: npt.NDArray[np.int32]) -> int:
    """Characters that the first tokens of a text are of, the last one perhaps in part."""
    found = tokenizer.decode(ids.tolist())
    if text.startswith(found):
        return len(found)
    same = num_equal(found, text)
    if found[same:].strip("\N{REPLACEMENT CHARACTER}"):
        raise _OtherTextError
    return same + 1


def _in_spans(spans: Sequence[tuple[int, int]], text: str, char: int) -> int:
    """The token at a character; of one in no token that before it, of a space that behind it."""
    found = next((n for n, (start, stop) in enumerate(spans) if start <= char < stop), None)
    if found is None:
        stops = [stop for _, stop in spans]
        before = bisect.bisect_right(stops, char)
        return min(before, len(spans) - 1) if text[char].isspace() else max(before - 1, 0)
    while found and spans[found - 1] == spans[found]:
        found -= 1  # of a character of several tokens the first
    return found
