"""Questions that a model answers in writing: what a benchmark asks, and how the asking goes on.

A benchmark lists its questions; prompts are made one batch before they are asked. Every answer is
noted in the journal with its score, so that a killed evaluation goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megatron_ultralong.evaluation.cost import check_cost, estimate_cost
from megatron_ultralong.evaluation.cost_config import CostConfig
from megatron_ultralong.evaluation.generator import Generator
from megatron_ultralong.evaluation.journal import Journal, sample_key
from megatron_ultralong.evaluation.prompt_tokenizer import IdArray, PromptTokenizer
from megatron_ultralong.evaluation.scorer import check_ids
from megatron_ultralong.model_config import ModelConfig
from megatron_ultralong.progress import ProgressBar, progress
from megatron_ultralong.ranks import world_size


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is asked, in tokens."""

    tokens: IdArray
    references: Any
    """What the answer is held against; JSON."""
    was_truncated: bool = False
    """Whether the middle of its text was left out."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One question of a benchmark."""

    task: str
    column: str
    """Column of the table: a length."""
    index: int
    num_tokens: int
    """Tokens of the prompt, at most or estimated, for the cost and the progress."""
    max_new_tokens: int
    decides: Mapping[str, Any]
    """JSON of all that the prompt and its score depend on, beside the model."""
    make: Callable[[], Prompt]
    score: Callable[[str, Any], float]
    """Of what was written and the references: 0 to 1."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of a question."""

    task: str
    column: str
    index: int
    num_prompt_tokens: int
    was_truncated: bool
    prediction: str
    references: Any
    score: float


def ask(
    questions: Sequence[Question],
    generator: Generator,
    tokenizer: PromptTokenizer,
    journal: Journal,
    model: ModelConfig,
    *,
    cost: CostConfig,
    micro_batch_size: int,
    description: str,
) -> list[Answer]:
    """Answers to ``questions``, in their order; every rank calls it and gets all.

    Raises:
        InputError: the evaluation is estimated above ``cost.max_cost``, or a prompt has ids that
            the model does not know.
    """
    stop_ids = tokenizer.stop_ids()
    keys = [
        sample_key(
            task=question.task,
            column=question.column,
            index=question.index,
            max_new_tokens=question.max_new_tokens,
            stop_ids=sorted(stop_ids),
            decides=dict(question.decides),
        )
        for question in questions
    ]
    pending = [
        (key, question)
        for key, question in zip(keys, questions, strict=True)
        if journal.get(key) is None
    ]
    sizes = [(question.num_tokens, question.max_new_tokens) for _, question in pending]
    estimate = estimate_cost(model, sizes, cost, world_size())
    check_cost(estimate, cost, is_main=generator.is_main)
    shown: contextlib.AbstractContextManager[ProgressBar | None] = contextlib.nullcontext()
    if generator.is_main and pending:
        shown = progress(description, estimate.num_tokens, "tokens")
    with shown as bar:
        for start in range(0, len(pending), micro_batch_size):
            batch = pending[start : start + micro_batch_size]
            for group in _by_answer_length(batch):
                _ask_batch(group, generator, tokenizer, journal, stop_ids)
            if bar is not None:
                bar.advance(sum(q.num_tokens + q.max_new_tokens for _, q in batch))
    return [_answer(journal, key) for key in keys]


def _ask_batch(
    batch: Sequence[tuple[str, Question]],
    generator: Generator,
    tokenizer: PromptTokenizer,
    journal: Journal,
    stop_ids: frozenset[int],
) -> None:
    prompts = [question.make() for _, question in batch]
    for (_, question), prompt in zip(batch, prompts, strict=True):
        check_ids(generator, prompt.tokens, f"the prompt of {question.task}")
    written = generator.generate(
        [prompt.tokens.tolist() for prompt in prompts],
        max_new_tokens=batch[0][1].max_new_tokens,
        stop_ids=stop_ids,
    )
    for (key, question), prompt, ids in zip(batch, prompts, written, strict=True):
        prediction = tokenizer.decode(ids)
        answer = Answer(
            task=question.task,
            column=question.column,
            index=question.index,
            num_prompt_tokens=int(prompt.tokens.size),
            was_truncated=prompt.was_truncated,
            prediction=prediction,
            references=prompt.references,
            score=float(question.score(prediction, prompt.references)),
        )
        journal.add(key, dataclasses.asdict(answer))


def _by_answer_length(
    batch: Sequence[tuple[str, Question]],
) -> list[list[tuple[str, Question]]]:
    """A batch in parts that are asked for answers of one length."""
    groups: dict[int, list[tuple[str, Question]]] = {}
    for entry in batch:
        groups.setdefault(entry[1].max_new_tokens, []).append(entry)
    return list(groups.values())


def _answer(journal: Journal, key: str) -> Answer:
    entry = journal.get(key)
    assert entry is not None
    return Answer(**entry)
