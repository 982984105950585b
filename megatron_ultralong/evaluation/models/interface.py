"""What an evaluation asks of a model: scores of whole rows, and continuations of prompts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from megatron_ultralong.config.generate import SamplingConfig
from megatron_ultralong.data.rows.indexed import unknown_id, why_unknown
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError


@dataclasses.dataclass(frozen=True)
class Scores:
    """Predictions of one forward over rows ``tokens`` of shape [b, S]."""

    loss: npt.NDArray[np.float32]
    """Nats of predicting ``tokens[:, i + 1]`` at position ``i``, shape [b, S - 1]."""
    correct: npt.NDArray[np.bool_]
    """Whether the argmax at position ``i`` is ``tokens[:, i + 1]``, shape [b, S - 1]."""


class Model(Protocol):
    """What scorers and generators have in common."""

    name: str
    """In tables and pictures, such as ``before``."""
    max_positions: int
    """Positions that the model was trained for; its embedding may be made for more."""
    vocab_size: int
    """Token ids that the model knows: 0 to ``vocab_size - 1``."""
    is_main: bool
    """True on the one rank that prints and writes files."""


class Scorer(Model, Protocol):
    """A checkpoint that scores rows of tokens.

    Under torchrun every rank calls :meth:`score` with the same tokens, and every rank gets the
    whole result.
    """

    def score(self, tokens: npt.NDArray[np.int64]) -> Scores:
        """Scores of rows ``tokens``, shape [b, S], from one forward in the training layout."""


Prompts = Sequence[Sequence[int]]
"""Token ids of each."""


class Generator(Model, Protocol):
    """A checkpoint that continues prompts greedily.

    Under torchrun every rank calls :meth:`generate` with the same prompts, and every rank gets all
    continuations.
    """

    def generate(
        self, prompts: Prompts, *, max_new_tokens: int, stop_ids: frozenset[int] = frozenset()
    ) -> list[list[int]]:
        """Ids of the greedy continuation of every prompt, in their order.

        A continuation is without its prompt, has at most ``max_new_tokens`` ids, and ends before
        the first id of ``stop_ids``. Prompts may differ in length; what they yield is the same as
        one by one.

        Raises:
            InputError: an empty prompt, or an id that the model does not know.
        """


class LanguageModel(Scorer, Generator, Protocol):
    """A checkpoint that scores and writes by the same weights."""

    groups: Any
    """Process groups of the layout; None in one process."""

    def score_ends(self, rows: Sequence[tuple[npt.NDArray[np.integer], int]]) -> list[Scores]:
        """Scores of the last ``n`` tokens of every row ``(tokens [T], n)``, shape [n] each.

        What a row has in common with the one before it need not be read again.
        """

    def write(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int],
        has_ended: Callable[[Sequence[int]], bool],
        sampling: SamplingConfig,
        names: Sequence[str],
    ) -> list[list[int]]:
        """As :meth:`generate`; also ends where ``has_ended`` says so of what was written.

        ``names`` of the prompts decide their draws.

        Raises:
            InputError: it cannot sample.
        """


def check_length(
    model: Model, length: int, beyond_trained_positions: bool, *, what: str = "", way_out: str = ""
) -> None:
    """Check that rows of ``length`` tokens lie within the trained positions.

    Where somebody asked to go beyond, the main rank says what to expect.

    Args:
        model: what is evaluated.
        length: tokens of the longest row.
        beyond_trained_positions: whether somebody asked for it.
        what: names the row; by default its length.
        way_out: how to stay within; by default to use shorter lengths.

    Raises:
        InputError: they do not, and nobody asked for it.
    """
    if length <= model.max_positions:
        return
    where = (
        f"{what or f'length {length}'} is beyond the {model.max_positions} positions that "
        f"checkpoint '{model.name}' was trained for"
    )
    if not beyond_trained_positions:
        raise InputError(
            f"{where}: figures there say little about it; "
            f"{way_out or f'use lengths up to {model.max_positions}'}, or give "
            "--beyond-trained-positions to see how it breaks"
        )
    if model.is_main:
        tell(
            f"warning: {where}: expect the loss to rise and retrieval to fall to chance from there "
            "on"
        )


def check_finite(losses: Sequence[float], what: str) -> None:
    """Raise InputError where the losses of ``what`` are no numbers."""
    if not np.isfinite(losses).all():
        raise InputError(
            f"{what} has losses {losses}: the checkpoint's weights or its precision are broken; "
            "try --precision fp32"
        )


def check_ids(model: Model, tokens: npt.NDArray[np.integer], source: str) -> None:
    """Check that the model knows every id of ``tokens``, shape [S], which came from ``source``.

    Raises:
        InputError: an id has no row in the embedding.
    """
    unknown = unknown_id(tokens, model.vocab_size)
    if unknown is None:
        return
    position, token = unknown
    why = why_unknown(token, model.vocab_size, f"checkpoint '{model.name}'")
    raise InputError(
        f"{source} has at position {position} {why}: the tokenizer does not fit the model, or the "
        "file is damaged; use the tokenizer that the checkpoint was imported with"
    )
