"""Samples put to a model: the one loop of all evaluations, with journal, cost and progress.

A sample is one or more rows of tokens, which the model continues or scores, and what is noted of
them. Rows are made one batch before they are asked; a sample is noted as soon as all its rows are
answered, so that a killed evaluation goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from megatron_ultralong.evaluation.asking.cost import check_cost, estimate_cost
from megatron_ultralong.evaluation.models import interface
from megatron_ultralong.evaluation.options import CostConfig
from megatron_ultralong.generation.prompt_tokenizer import IdArray
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.journal import Journal
from megatron_ultralong.program.progress import progress
from megatron_ultralong.program.ranks import world_size

Reply = TypeVar("Reply")
"""Ids that a model wrote, or the :class:`Scores` of one row, of shape [T - 1] each."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is put to the model, in tokens."""

    tokens: IdArray
    """Shape [T]; with the answer where it is scored."""
    references: Any = None
    """What the reply is held against."""
    was_truncated: bool = False
    """Whether the middle of its text was left out."""
    max_new_tokens: int = 0
    """To be written; 0: the tokens are scored."""


@dataclasses.dataclass(frozen=True)
class Row(Generic[Reply]):
    """A prompt before it is made."""

    num_tokens: int
    """Of the prompt, at most or estimated, for the cost and the progress."""
    make: Callable[[], Prompt]
    judge: Callable[[Prompt, Reply], Any]
    """JSON of what the reply says."""
    source: str
    """What a message calls it."""
    max_new_tokens: int = 0
    """To be written, at most or estimated; 0: it is scored."""
    batch: str = ""
    """Rows of other batches are not asked together with it."""


@dataclasses.dataclass(frozen=True)
class Sample(Generic[Reply]):
    """What is noted as one."""

    key: str
    """Hash of all that decides it, beside the model."""
    rows: tuple[Row[Reply], ...]
    note: Callable[[list[Any]], dict[str, Any]] = lambda judged: dict(judged[0])
    """What the journal notes of it, from what was judged of its rows, in their order."""


Put = Callable[[Sequence[Prompt]], Sequence[Reply]]
"""How a batch of prompts is put to a model."""


def writing(
    generator: interface.Generator, stop_ids: frozenset[int] = frozenset()
) -> Put[list[int]]:
    """Prompts are continued greedily, up to the first of ``stop_ids``."""
    return lambda prompts: generator.generate(
        [prompt.tokens.tolist() for prompt in prompts],
        max_new_tokens=max(prompt.max_new_tokens for prompt in prompts),
        stop_ids=stop_ids,
    )


def scoring(scorer: interface.Scorer) -> Put[interface.Scores]:
    """Prompts are scored by one forward pass; padding stands after them, where nothing sees it."""

    def put(prompts: Sequence[Prompt]) -> list[interface.Scores]:
        sizes = [prompt.tokens.size for prompt in prompts]
        padded = [np.pad(p.tokens, (0, max(sizes) - p.tokens.size)) for p in prompts]
        scores = scorer.score(np.stack(padded))
        return [
            interface.Scores(scores.loss[k, : size - 1], scores.correct[k, : size - 1])
            for k, size in enumerate(sizes)
        ]

    return put


def ask(
    samples: Sequence[Sample[Reply]],
    put: Put[Reply],
    model: interface.Model,
    journal: Journal,
    *,
    micro_batch_size: int,
    description: str,
    shape: ModelConfig | None = None,
    cost: CostConfig | None = None,
) -> list[dict[str, Any]]:
    """What the journal has of ``samples``, in their order, when all are asked.

    Every rank calls it and gets all. Rows that are scored go by their length, so that padding is
    short; those that are continued in the order given.

    Args:
        samples: what is asked; those that the journal has are not asked again.
        put: how a batch is put to the model.
        model: which model, for messages.
        journal: where samples are noted.
        micro_batch_size: rows in a batch, at most.
        description: beside the progress.
        shape: of the model, for the cost; None: no estimate is made.
        cost: what the evaluation may cost, where ``shape`` is given.

    Raises:
        InputError: the evaluation is estimated above ``cost.max_cost``, or a row has ids that the
            model does not know.
    """
    pending = {sample.key: sample for sample in samples if journal.get(sample.key) is None}
    rows = [_Part(key, k, row) for key, one in pending.items() for k, row in enumerate(one.rows)]
    rows.sort(key=lambda part: 0 if part.row.max_new_tokens else part.row.num_tokens)
    if shape is not None:
        sizes = [(part.row.num_tokens, part.row.max_new_tokens) for part in rows]
        estimate = estimate_cost(shape, sizes, cost or CostConfig(), world_size())
        check_cost(estimate, cost or CostConfig(), is_main=model.is_main)
    judged: dict[str, dict[int, Any]] = {}
    with _counted(rows, description, is_main=model.is_main) as advance:
        for batch in _batches(rows, micro_batch_size):
            prompts = [part.row.make() for part in batch]
            for part, prompt in zip(batch, prompts, strict=True):
                interface.check_ids(model, prompt.tokens, part.row.source)
            for part, prompt, reply in zip(batch, prompts, put(prompts), strict=True):
                sample, found = pending[part.key], judged.setdefault(part.key, {})
                found[part.number] = part.row.judge(prompt, reply)
                if len(found) == len(sample.rows):
                    del judged[part.key]
                    journal.add(part.key, sample.note([found[k] for k in range(len(found))]))
            advance(_num_tokens(batch))
    return [entry for one in samples if (entry := journal.get(one.key)) is not None]


@dataclasses.dataclass(frozen=True)
class _Part(Generic[Reply]):
    """A row of a sample."""

    key: str
    number: int
    row: Row[Reply]


def _batches(rows: Sequence[_Part[Reply]], size: int) -> Iterator[list[_Part[Reply]]]:
    """Rows that are asked together: neighbours that are asked for answers of one length."""
    groups = itertools.groupby(rows, lambda part: (part.row.batch, part.row.max_new_tokens))
    for _, group in groups:
        while batch := list(itertools.islice(group, size)):
            yield batch


def _num_tokens(rows: Sequence[_Part[Reply]]) -> int:
    return sum(part.row.num_tokens + part.row.max_new_tokens for part in rows)


@contextlib.contextmanager
def _counted(
    rows: Sequence[_Part[Reply]], description: str, *, is_main: bool
) -> Iterator[Callable[[float], None]]:
    """A function that counts tokens; the main rank shows them in a progress bar."""
    if not is_main or not rows:
        yield lambda amount: None
        return
    with progress(description, _num_tokens(rows), "tokens") as bar:
        yield bar.advance
