"""What a model can be given to continue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_ultralong.data.read.token_ids import unknown_id, why_unknown
from megatron_ultralong.program.errors import InputError


def check_prompts(
    prompts: Sequence[Sequence[int]], max_new_tokens: int, vocab_size: int, name: str
) -> None:
    """Check what checkpoint ``name`` is given to continue.

    Raises:
        InputError: an empty prompt, an id that the model does not know, or ``max_new_tokens``
            below one.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(
                f"prompt {number} has no tokens: a model continues at least one; begin it with the "
                "token that begins a text"
            )
        unknown = unknown_id(np.asarray(prompt), vocab_size)
        if unknown is not None:
            why = why_unknown(unknown[1], vocab_size, f"checkpoint '{name}'")
            raise InputError(
                f"prompt {number} has at position {unknown[0]} {why}: the tokenizer does not fit "
                "the model; use the one that the checkpoint was imported with"
            )
