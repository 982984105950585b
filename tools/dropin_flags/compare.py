"""One way to try an argument: Megatron-LM alone beside Megatron-LM with the drop-in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from tools.dropin_flags import runs

Class = Literal["same", "refused", "left", "other"]
"""same: both train, with the same losses; refused: ours refuses by name before the first step;
left: Megatron-LM alone does not train with it here; other: a fault of this project."""
UNDEFINED = {"perform_initialization": "without a checkpoint, weights are what the memory held"}
"""Arguments under which Megatron-LM alone is not a judge, and why."""
TOLERANCE = 1e-5
"""Relative, of every loss: float32 sums in another order."""
TOLERANCE_16_BITS = 2e-3
"""The same in bfloat16 or half precision: Megatron-LM's scores and softmax have its 8 or 11 bits,
ours have float32's."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What came out."""

    name: str
    """The argument's, as the parsed namespace has it."""
    words: str
    """The command line that tried it, beside the common one."""
    kind: Class
    difference: float = 0.0
    """Largest relative difference of a loss."""
    has_effect: bool = False
    """Whether the losses are others than without the argument."""
    said: str = ""
    """What was raised, of the kinds that do not train."""


def compare(
    name: str, words: str, flags: list[str], script: Path, base: list[str], usual: runs.Outcome
) -> Comparison:
    """Run both.

    Args:
        name: of the argument.
        words: that try it.
        flags: of the parser for it.
        script: a Megatron-LM script.
        base: the common command line.
        usual: Megatron-LM alone by that.
    """
    if name in UNDEFINED:
        return Comparison(name, words, "left", said=UNDEFINED[name])
    given = [*base, *words.split()]
    plain = runs.run("plain", script, given)
    if plain.error or not plain.losses:
        return Comparison(name, words, "left", said=plain.error or "it takes no step")
    actual = runs.run("drop-in", script, given)
    if actual.is_refusal:
        is_named = any(word in actual.error for word in [*flags, *words.split()] if "--" in word)
        is_good = is_named and not actual.losses
        return Comparison(name, words, "refused" if is_good else "other", said=actual.error)
    if actual.error or len(actual.losses) != len(plain.losses):
        return Comparison(name, words, "other", said=actual.error or "another number of steps")
    difference = max(
        0.0 if a == b or (a != a and b != b) else abs(a - b) / abs(a)
        for a, b in zip(plain.losses, actual.losses, strict=True)
    )
    is_short = {"--bf16", "--fp16"} & set(words.split())
    is_same = difference <= (TOLERANCE_16_BITS if is_short else TOLERANCE)
    return Comparison(
        *(name, words, "same" if is_same else "other", difference),
        has_effect=plain.losses != usual.losses[: len(plain.losses)],
    )
