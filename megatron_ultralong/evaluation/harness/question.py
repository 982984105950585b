"""Requests in tokens, and the order and form in which a checkpoint is asked them."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from megatron_ultralong.config.generate import SamplingConfig
from megatron_ultralong.evaluation.asking import samples
from megatron_ultralong.evaluation.models.interface import Scores
from megatron_ultralong.generation.end_scorer import num_common
from megatron_ultralong.generation.prompt_tokenizer import IdArray
from megatron_ultralong.program.journal import sample_key
from megatron_ultralong.program.optional import optional_package

LEAST_COMMON = 256
"""Tokens in common with a neighbour from which on a row is read by itself behind them: a forward
pass of one row costs about as much as so many more tokens of a batch."""
LONG_ROW = 16384
"""Tokens from which on a row is read in chunks, whatever it has in common: activations of a whole
row would take more memory than its keys and values."""
MOST_SCORED = 1024
"""Tokens of such rows that are scored, at most."""


@dataclasses.dataclass(frozen=True)
class Writing:
    """How a prompt is continued."""

    max_new_tokens: int
    until: tuple[str, ...]
    sampling: SamplingConfig


@dataclasses.dataclass(frozen=True)
class Question:
    """A request in tokens."""

    key: str
    rows: tuple[tuple[IdArray, int], ...]
    """Tokens of each row, and how many of its last ones are scored; of one to be continued none."""
    writing: Writing | None = None


def scored(rows: Sequence[tuple[IdArray, int]], *, is_text: bool = False) -> Question:
    """A question of rows of tokens, the last ones of each scored; or of a text, in windows."""
    parts = {f"row {number}": row for number, (row, _) in enumerate(rows)}
    return Question(sample_key(**parts, last=[last for _, last in rows], text=is_text), tuple(rows))


def groups(questions: Iterable[Question]) -> list[list[Question]]:
    """Those that one call can put: by how they are continued."""
    found: dict[Writing | None, list[Question]] = {}
    for question in questions:
        found.setdefault(question.writing, []).append(question)
    return list(found.values())


def in_order(
    questions: Sequence[Question], decode: Callable[..., str]
) -> list[samples.Sample[Any]]:
    """Questions of one group, in the order in which they are asked.

    Those that are continued: the longest first. Of those that are scored, neighbours that have
    enough in common come first, in alphabetical order; of a neighbour that is read anyway the rest
    alone is read. ``decode`` is that of a tokenizer of transformers.
    """
    if questions[0].writing is not None:
        ordered = sorted(questions, key=lambda one: -one.rows[0][0].size)
        return [_written(question, decode) for question in ordered]
    lone = [question for question in questions if len(question.rows) == 1]
    lone.sort(key=lambda one: one.rows[0][0].astype(">i4").tobytes())
    ids = [question.rows[0][0] for question in lone]
    common = [0, *map(num_common, ids, ids[1:]), 0]
    found = []
    for number, question in enumerate(lone):
        tokens, last = question.rows[0]
        shared = min(common[number], tokens.size - 1 - last)
        is_near = max(common[number : number + 2]) >= LEAST_COMMON or tokens.size >= LONG_ROW
        is_end = is_near and last <= MOST_SCORED
        found.append(_read(question, max(shared, 0) if is_end else None))
    return found + [_read(question) for question in questions if len(question.rows) != 1]


def _written(question: Question, decode: Callable[..., str]) -> samples.Sample[list[int]]:
    writing, tokens = question.writing, question.rows[0][0]
    assert writing is not None
    cut = optional_package("lm_eval.models.utils", "evaluate harness").postprocess_generated_text
    until, room, name = list(writing.until), writing.max_new_tokens, question.key

    def judge(_: samples.Prompt, ids: list[int]) -> dict[str, Any]:
        return {"text": cut(decode(ids, skip_special_tokens=True), until, None)}

    def make() -> samples.Prompt:
        return samples.Prompt(tokens.astype(np.int64), name, max_new_tokens=room)

    return samples.Sample(name, (samples.Row(tokens.size, make, judge, "a prompt", room),))


def _read(question: Question, num_shared: int | None = None) -> samples.Sample[Scores]:
    """A scored question; ``num_shared`` tokens are read of it before, None: it is a whole row."""
    is_whole = num_shared is None

    def row(tokens: IdArray, last: int) -> samples.Row[Scores]:
        def make() -> samples.Prompt:
            return samples.Prompt(tokens.astype(np.int64), None if is_whole else last)

        def judge(_: samples.Prompt, scores: Scores) -> tuple[float, bool]:
            losses = scores.loss[-last:]
            return -float(losses.sum(dtype=np.float64)), bool(scores.correct[-last:].all())

        num_tokens = tokens.size - (num_shared or 0)
        return samples.Row(num_tokens, make, judge, "a row", batch="" if is_whole else "ends")

    def note(judged: list[tuple[float, bool]]) -> dict[str, Any]:
        return {
            "log_likelihood": sum(value for value, _ in judged),
            "is_greedy": all(greedy for _, greedy in judged),
        }

    return samples.Sample(question.key, tuple(row(*one) for one in question.rows), note)
