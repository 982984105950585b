"""What an evaluation asks of a model that has to write: continuations of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Generator(Protocol):
    """A checkpoint that continues prompts greedily.

    Under torchrun every rank calls :meth:`generate` with the same prompts, and every rank gets all
    continuations.
    """

    @property
    def name(self) -> str:
        """Name in tables and pictures, such as ``before``."""

    @property
    def max_positions(self) -> int:
        """Positions that the model was trained for."""

    @property
    def vocab_size(self) -> int:
        """Token ids that the model knows: 0 to ``vocab_size - 1``."""

    @property
    def is_main(self) -> bool:
        """True on the one rank that prints and writes files."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
    ) -> list[list[int]]:
        """Ids of the greedy continuation of every prompt, in their order.

        A continuation is without its prompt, has at most ``max_new_tokens`` ids, and ends before
        the first id of ``stop_ids``. Prompts may differ in length; what they yield is the same as
        one by one.

        Raises:
            InputError: an empty prompt, or an id that the model does not know.
        """


def before_stop(ids: Sequence[int], stop_ids: frozenset[int]) -> list[int]:
    """What comes before the first id of ``stop_ids``: ``[5, 6, 2, 2]`` and ``{2}``: ``[5, 6]``."""
    stop = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return [int(token) for token in ids[:stop]]
