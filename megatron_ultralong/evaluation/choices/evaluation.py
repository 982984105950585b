"""``evaluate choices``: the likelihood of every choice by one forward pass, in any layout."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import numpy as np

from megatron_ultralong.errors import InputError
from megatron_ultralong.evaluation.benchmark import show
from megatron_ultralong.evaluation.choices.config import ChoicesConfig
from megatron_ultralong.evaluation.choices.questions import (
    ChoiceQuestion,
    continuations,
    fewshot_text,
    question_files,
    question_text,
    read_questions,
    task_name,
)
from megatron_ultralong.evaluation.cost import check_cost, estimate_cost
from megatron_ultralong.evaluation.cost_config import CostConfig
from megatron_ultralong.evaluation.journal import Journal, open_journal, sample_key
from megatron_ultralong.evaluation.local_data import file_sha256
from megatron_ultralong.evaluation.models import ModelFacts
from megatron_ultralong.evaluation.prompt_tokenizer import IdArray, PromptTokenizer
from megatron_ultralong.evaluation.results.result import (
    KINDS,
    Result,
    mean_cell,
    plain_values,
)
from megatron_ultralong.evaluation.scorer import Scorer, check_ids, check_length
from megatron_ultralong.progress import ProgressBar, progress
from megatron_ultralong.ranks import world_size

ACCURACY, NORMALISED = "accuracy", "accuracy by character"
"""Of the likeliest choice, and of the likeliest for its length in characters, as
lm-evaluation-harness' ``acc`` and ``acc_norm``."""


@dataclasses.dataclass(frozen=True)
class _Row:
    """A question with one choice, in tokens."""

    key: str
    choice: int
    tokens: IdArray
    answer_start: int
    """Position of the first token of the choice."""


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A question and its rows."""

    task: str
    index: int
    key: str
    question: ChoiceQuestion
    rows: tuple[_Row, ...]


def evaluate_choices(
    config: ChoicesConfig,
    scorer: Scorer,
    facts: ModelFacts,
    tokenizer: PromptTokenizer,
    cost: CostConfig,
) -> Result:
    """Measure the share of questions whose likeliest choice is right.

    Every rank calls this; the main one prints and writes.

    Raises:
        InputError: a file that is missing or damaged, rows beyond the trained positions, an
            output folder in use, or a cost above the limit.
    """
    config.check()
    files = question_files(config.data)
    material = {file.name: file_sha256(file) for file in files.values()}
    asked: list[_Asked] = []
    for task, file in files.items():
        questions = read_questions(file)
        before = fewshot_text(task, _solved(config, task, material), config.choice_style)
        for index, question in enumerate(questions[: config.num_samples or None]):
            asked.append(_ask(config, tokenizer, task, index, question, before))
    longest = max(row.tokens.size for one in asked for row in one.rows)
    check_length(
        scorer,
        longest,
        config.beyond_trained_positions,
        what=f"a question of {longest} tokens",
        way_out="use fewer --num-fewshot",
    )
    identity = {
        **facts.identity,
        "choice_style": config.choice_style,
        "num_fewshot": config.num_fewshot,
        "tokenizer": tokenizer.sha256,
    }
    with open_journal(config.output, "choices", identity, is_main=scorer.is_main) as journal:
        _score(config, scorer, facts, cost, asked, journal)
        result = _result(config, facts, asked, journal, material)
        if scorer.is_main:
            show(result, journal)
    return result


def _solved(config: ChoicesConfig, task: str, material: dict[str, str]) -> list[ChoiceQuestion]:
    if not config.num_fewshot:
        return []
    files = question_files([config.fewshot_data])
    if task not in files:
        raise InputError(
            f"--fewshot-data {config.fewshot_data} has no file for task '{task}', only for "
            f"{', '.join(files)}"
        )
    questions = read_questions(files[task])
    if len(questions) < config.num_fewshot:
        raise InputError(
            f"{files[task]} has {len(questions)} questions, fewer than num_fewshot "
            f"({config.num_fewshot})"
        )
    assert task_name(files[task]) == task
    material[f"few-shot {files[task].name}"] = file_sha256(files[task])
    return questions[: config.num_fewshot]


def _ask(
    config: ChoicesConfig,
    tokenizer: PromptTokenizer,
    task: str,
    index: int,
    question: ChoiceQuestion,
    before: str,
) -> _Asked:
    """A question's rows: what it has in common with the question alone is not scored."""
    context = before + question_text(question, config.choice_style)
    begin = np.asarray(tokenizer.begin_ids, np.int64)
    alone = np.concatenate([begin, tokenizer.encode(context)])
    endings = continuations(question, config.choice_style)
    wholes = [np.concatenate([begin, tokenizer.encode(context + end)]) for end in endings]
    key = sample_key(task=task, index=index, context=context, endings=endings)
    rows = tuple(
        _Row(key, choice, whole, min(max(alone.size, 1), whole.size - 1))
        for choice, whole in enumerate(wholes)
    )
    return _Asked(task, index, key, question, rows)


def _score(
    config: ChoicesConfig,
    scorer: Scorer,
    facts: ModelFacts,
    cost: CostConfig,
    asked: Sequence[_Asked],
    journal: Journal,
) -> None:
    """Note every question's negative log-likelihoods in nats; rows of like length together."""
    pending = {one.key: one for one in asked if journal.get(one.key) is None}
    rows = sorted(
        (row for one in pending.values() for row in one.rows), key=lambda r: r.tokens.size
    )
    sizes = [(int(row.tokens.size), 0) for row in rows]
    estimate = estimate_cost(facts.model, sizes, cost, world_size())
    check_cost(estimate, cost, is_main=scorer.is_main)
    losses: dict[str, dict[int, float]] = {key: {} for key in pending}
    shown: contextlib.AbstractContextManager[ProgressBar | None] = contextlib.nullcontext()
    if scorer.is_main and rows:
        shown = progress(f"Choices of {facts.name}", estimate.num_tokens, "tokens")
    with shown as bar:
        for start in range(0, len(rows), config.micro_batch_size):
            batch = rows[start : start + config.micro_batch_size]
            for row, loss in zip(batch, _losses(scorer, batch), strict=True):
                losses[row.key][row.choice] = loss
                if len(losses[row.key]) == len(pending[row.key].rows):
                    _note(journal, pending[row.key], losses.pop(row.key))
            if bar is not None:
                bar.advance(sum(row.tokens.size for row in batch))


def _losses(scorer: Scorer, batch: Sequence[_Row]) -> list[float]:
    """Sum of the losses of each row's choice; padding stands after it, where nothing sees it."""
    longest = max(row.tokens.size for row in batch)
    tokens = np.stack([np.pad(row.tokens, (0, longest - row.tokens.size)) for row in batch])
    check_ids(scorer, tokens, "the questions")
    scores = scorer.score(tokens)
    return [
        float(scores.loss[k, row.answer_start - 1 : row.tokens.size - 1].sum(dtype=np.float64))
        for k, row in enumerate(batch)
    ]


def _note(journal: Journal, one: _Asked, losses: dict[int, float]) -> None:
    by_choice = [losses[choice] for choice in range(len(losses))]
    if not np.isfinite(by_choice).all():
        raise InputError(
            f"{one.task}, question {one.index + 1} has losses {by_choice}: the checkpoint's "
            "weights or its precision are broken; try --precision fp32"
        )
    journal.add(
        one.key,
        {
            "task": one.task,
            "index": one.index,
            "answer": one.question.answer,
            "losses": by_choice,
        },
    )


def _result(
    config: ChoicesConfig,
    facts: ModelFacts,
    asked: Sequence[_Asked],
    journal: Journal,
    material: dict[str, str],
) -> Result:
    right: dict[str, list[tuple[bool, bool]]] = {}
    sizes: dict[str, list[int]] = {}
    for one in asked:
        entry = journal.get(one.key)
        assert entry is not None
        losses = np.asarray(entry["losses"])
        endings = continuations(one.question, config.choice_style)
        lengths = np.asarray([max(len(end) - 1, 1) for end in endings])  # without the space
        answer = one.question.answer
        right.setdefault(one.task, []).append(
            (int(losses.argmin()) == answer, int((losses / lengths).argmin()) == answer)
        )
        sizes.setdefault(one.task, []).append(int(one.rows[0].tokens.size))
    columns = (ACCURACY,) if config.choice_style == "letters" else (ACCURACY, NORMALISED)
    cells = tuple(
        mean_cell(
            task,
            column,
            [float(hit[k]) for hit in hits],
            {"num_prompt_tokens": sum(sizes[task]) / len(sizes[task])},
        )
        for task, hits in right.items()
        for k, column in enumerate(columns)
    )
    notes = [
        f"likelihood of {config.choice_style} by one forward pass, {config.num_fewshot} solved "
        "questions before each; the mean is of the files"
    ]
    return Result(
        kind=KINDS["choices"],
        config=plain_values(config),
        checkpoint=facts.name,
        max_positions=facts.max_positions,
        cells=cells,
        metrics=dict.fromkeys(right, "accuracy"),
        notes=tuple(notes),
        material=material,
        model=facts.record,
    )
