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


@dataclasses.dataclass(frozen=True)
class GenerationOptions:
    """How prompts are continued."""

    has_ended: Callable[[Sequence[int]], bool] = lambda written: False
    """Whether what was written is to end there."""
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    names: Sequence[str] = ()
    """Of the prompts, which decide their draws."""


GREEDY = GenerationOptions()


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
    """A checkpoint that scores rows of tokens."""

    def score(self, tokens: npt.NDArray[np.int64]) -> Scores:
        """Scores of rows ``tokens``, shape [b, S], from one forward in the training layout.

        Every rank calls it with the same tokens, and every rank gets the whole result.
        """


Prompts = Sequence[Sequence[int]]
"""Token ids of each."""


class Generator(Model, Protocol):
    """A checkpoint that continues prompts."""

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
        options: GenerationOptions = GREEDY,
    ) -> list[list[int]]:
        """Ids of the continuation of every prompt, without it, in their order.

        Each has at most ``max_new_tokens`` ids, and ends before the first of ``stop_ids``. Prompts
        may differ in length; what they yield is the same as one by one. Every rank calls it with
        the same prompts, and every rank gets all continuations.

        Raises:
            InputError: an empty prompt, an id that the model does not know, or it cannot sample.
        """


class LanguageModel(Scorer, Generator, Protocol):
    """A checkpoint that scores and writes by the same weights."""

    groups: Any
    """Process groups of the layout; None in one process."""

    def score_ends(self, rows: Sequence[tuple[npt.NDArray[np.integer], int]]) -> list[Scores]:
        """Scores of the last ``n`` tokens of every row ``(tokens [T], n)``, shape [n] each.

        What a row has in common with the one before it need not be read again.
        """


def check_length(
    model: Model, length: int, beyond_trained_positions: bool, *, what: str = "", way_out: str = ""
) -> None:
    """Check that rows of ``length`` tokens lie within the trained positions.

    Where somebody asked to go beyond, the main rank says what to expect. ``what`` names the row, by
    default by its length, and ``way_out`` how to stay within, by default to use shorter lengths.

    Raises:
        InputError: they do not, and nobody asked for it.
    """
    if not beyond_trained_positions:
        check_trained(model.name, model.max_positions, length, what=what, way_out=way_out)
    elif length > model.max_positions and model.is_main:
        where = _beyond(model.name, model.max_positions, length, what)
        tell(
            f"warning: {where}: expect the loss to rise and retrieval to fall to chance from there "
            "on"
        )


def check_trained(
    name: str, max_positions: int, length: int, *, what: str = "", way_out: str = ""
) -> None:
    """Check that rows of ``length`` tokens lie within the positions that a model was trained for.

    Raises:
        InputError: they do not.
    """
    if length > max_positions:
        raise InputError(
            f"{_beyond(name, max_positions, length, what)}: figures there say little about it; "
            f"{way_out or f'use lengths up to {max_positions}'}, or give "
            "--beyond-trained-positions to see how it breaks"
        )


def _beyond(name: str, max_positions: int, length: int, what: str) -> str:
    return (
        f"{what or f'length {length}'} is beyond the {max_positions} positions that checkpoint "
        f"'{name}' was trained for"
    )


def check_finite(scores: Scores, num_tokens: int, what: str) -> None:
    """Check that the losses of a row's last tokens, shape [T], are numbers.

    What has no loss is not counted as wrong: the argmax of NaN is an id like any other.

    Args:
        scores: of as many of its last tokens as were scored.
        num_tokens: of the whole row.
        what: the row is, and whose.

    Raises:
        InputError: one is not; it is named by its position in the row.
    """
    wrong = np.flatnonzero(~np.isfinite(scores.loss))
    if wrong.size:
        position = num_tokens - 1 - scores.loss.size + int(wrong[0])
        raise InputError(
            f"{what} has loss {scores.loss[wrong[0]]} at position {position}: the checkpoint's "
            "weights or its precision are broken; try fp32, or look at it with `ultralong convert "
            "inspect`"
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
