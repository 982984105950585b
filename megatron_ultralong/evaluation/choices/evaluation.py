"""``evaluate choices``: the likelihood of every choice by one forward pass, in any layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from megatron_ultralong.evaluation.asking.run import Benchmark, Entries, run_benchmark
from megatron_ultralong.evaluation.asking.samples import Prompt, Row, Sample, scoring
from megatron_ultralong.evaluation.choices.questions import (
    ChoiceQuestion,
    continuations,
    fewshot_text,
    question_files,
    question_text,
    read_questions,
    task_name,
)
from megatron_ultralong.evaluation.local.local_data import file_sha256
from megatron_ultralong.evaluation.models.interface import Scorer, Scores, check_length
from megatron_ultralong.evaluation.models.opening import ModelFacts
from megatron_ultralong.evaluation.options import ChoicesConfig, CostConfig
from megatron_ultralong.evaluation.results.result import KINDS, Result, ScoreCell, mean_cell
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.journal import sample_key

ACCURACY, NORMALISED = "accuracy", "accuracy by character"
"""Of the likeliest choice, and of the likeliest for its length in characters, as
lm-evaluation-harness' ``acc`` and ``acc_norm``."""


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A question of a task, and the texts whose likelihood is asked for."""

    task: str
    index: int
    question: ChoiceQuestion
    context: str
    endings: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    """One for every ending; ``references`` is the position of its first token."""


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
    longest = max(prompt.tokens.size for one in asked for prompt in one.prompts)
    check_length(
        scorer,
        longest,
        config.beyond_trained_positions,
        what=f"a question of {longest} tokens",
        way_out="use fewer --num-fewshot",
    )
    note = (
        f"likelihood of {config.choice_style} by one forward pass, {config.num_fewshot} solved "
        "questions before each; the mean is of the files"
    )
    benchmark = Benchmark(
        kind=KINDS["choices"],
        config=config,
        samples=[_sample(one) for one in asked],
        cells=lambda entries: _cells(config, asked, entries),
        decides={
            "choice_style": config.choice_style,
            "num_fewshot": config.num_fewshot,
            "tokenizer": tokenizer.sha256,
        },
        metrics=dict.fromkeys(files, "accuracy"),
        notes=lambda entries: [note],
        material=material,
        description="Choices",
    )
    return run_benchmark(benchmark, scoring(scorer), scorer, facts, cost)


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
    """A question's prompts: what each has in common with the question alone is not scored."""
    context = before + question_text(question, config.choice_style)
    begin = np.asarray(tokenizer.begin_ids, np.int64)
    alone = begin.size + tokenizer.encode(context).size
    endings = tuple(continuations(question, config.choice_style))
    wholes = [np.concatenate([begin, tokenizer.encode(context + end)]) for end in endings]
    prompts = tuple(Prompt(whole, min(max(alone, 1), whole.size - 1)) for whole in wholes)
    return _Asked(task, index, question, context, endings, prompts)


def _sample(one: _Asked) -> Sample[Scores]:
    """The negative log-likelihood of every choice in nats; rows of like length go together."""

    def note(losses: list[float]) -> dict[str, Any]:
        if not np.isfinite(losses).all():
            raise InputError(
                f"{one.task}, question {one.index + 1} has losses {losses}: the checkpoint's "
                "weights or its precision are broken; try --precision fp32"
            )
        answer = one.question.answer
        return {"task": one.task, "index": one.index, "answer": answer, "losses": losses}

    rows = tuple(
        Row(prompt.tokens.size, lambda prompt=prompt: prompt, _loss, "the questions")  # type: ignore[misc]
        for prompt in one.prompts
    )
    endings = list(one.endings)
    key = sample_key(task=one.task, index=one.index, context=one.context, endings=endings)
    return Sample(key, rows, note)


def _loss(prompt: Prompt, scores: Scores) -> float:
    return float(scores.loss[prompt.references - 1 :].sum(dtype=np.float64))


def _cells(config: ChoicesConfig, asked: list[_Asked], entries: Entries) -> tuple[ScoreCell, ...]:
    hits: dict[str, list[tuple[float, float]]] = {}
    sizes: dict[str, list[int]] = {}
    for one, entry in zip(asked, entries, strict=True):
        right = _hits(one, entry)
        hits.setdefault(one.task, []).append(right)
        sizes.setdefault(one.task, []).append(int(one.prompts[0].tokens.size))
    columns = (ACCURACY,) if config.choice_style == "letters" else (ACCURACY, NORMALISED)
    return tuple(
        mean_cell(
            task,
            column,
            [hit[k] for hit in of_task],
            {"num_prompt_tokens": sum(sizes[task]) / len(sizes[task])},
        )
        for task, of_task in hits.items()
        for k, column in enumerate(columns)
    )


def _hits(one: _Asked, entry: Mapping[str, Any]) -> tuple[float, float]:
    """Whether the likeliest choice is right, and the likeliest for its length."""
    losses = np.asarray(entry["losses"])
    lengths = np.asarray([max(len(end) - 1, 1) for end in one.endings])  # without the space
    answer = one.question.answer
    return float(losses.argmin() == answer), float((losses / lengths).argmin() == answer)
