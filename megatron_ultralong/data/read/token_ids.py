"""Token ids that a model has no embedding for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def unknown_id(tokens: npt.NDArray[Any], vocab_size: int) -> tuple[int, int] | None:
    """Place, in the flattened array, and value of the first id outside ``[0, vocab_size)``.

    ``unknown_id([[1, 2], [9, -1]], 5) -> (2, 9)``; None: the model knows all of them.
    """
    if not tokens.size or (tokens.min() >= 0 and tokens.max() < vocab_size):
        return None
    flat = tokens.reshape(-1)
    place = int(np.argmax((flat < 0) | (flat >= vocab_size)))
    return place, int(flat[place])


def why_unknown(token_id: int, vocab_size: int, model: str = "the model") -> str:
    """``token id 9, and the model knows ids 0 to 4 (vocab_size 5)``."""
    return (
        f"token id {token_id}, and {model} knows ids 0 to {vocab_size - 1} (vocab_size "
        f"{vocab_size})"
    )
