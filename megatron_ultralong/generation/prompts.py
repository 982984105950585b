"""What a model can be given to continue."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ultralong.errors import InputError


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
        wrong = next((i for i in (min(prompt), max(prompt)) if not 0 <= i < vocab_size), None)
        if wrong is not None:
            raise InputError(
                f"prompt {number} has token id {wrong}, but checkpoint '{name}' knows ids 0 to "
                f"{vocab_size - 1}: the tokenizer does not fit the model; use the one that the "
                "checkpoint was imported with"
            )
