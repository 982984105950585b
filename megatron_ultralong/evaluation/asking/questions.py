"""Questions that a model answers in writing: what a benchmark asks, and how it is scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megatron_ultralong.evaluation.asking.run import Benchmark, Entries, run_benchmark
from megatron_ultralong.evaluation.asking.samples import Prompt, Row, Sample, writing
from megatron_ultralong.evaluation.models.interface import Generator, check_length
from megatron_ultralong.evaluation.models.opening import ModelFacts
from megatron_ultralong.evaluation.options import CostConfig
from megatron_ultralong.evaluation.results.result import Kind, Result, ScoreCell, mean_cell
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.journal import sample_key


@dataclasses.dataclass(frozen=True)
class Question:
    """One question of a benchmark."""

    task: str
    column: str
    """Column of the table: a length, or the name of the score."""
    index: int
    num_tokens: int
    """Tokens of the prompt, at most or estimated, for the cost and the progress."""
    max_new_tokens: int
    decides: Mapping[str, Any]
    """JSON of all that the prompt and its score depend on, beside the model."""
    make: Callable[[], Prompt]
    score: Callable[[str, Any], float]
    """Of what was written and the references: 0 to 1."""


def evaluate_questions(
    questions: Sequence[Question],
    generator: Generator,
    facts: ModelFacts,
    tokenizer: PromptTokenizer,
    cost: CostConfig,
    *,
    kind: Kind,
    config: Any,
    lengths: Mapping[int, str],
    metrics: Mapping[str, str],
    notes: Sequence[str] = (),
    material: Mapping[str, str] | None = None,
) -> Result:
    """Ask all questions, print a table and write ``KIND.json``, ``KIND.png`` and every answer.

    Args:
        questions: what is asked.
        generator: the model.
        facts: what is known of it.
        tokenizer: the model's.
        cost: what the evaluation may cost.
        kind: the benchmark.
        config: the verb's configuration, with ``output``, ``micro_batch_size`` and
            ``beyond_trained_positions``.
        lengths: greatest tokens of prompt and answer together, and what they belong to.
        metrics: the metric of every task.
        notes: conditions that a reader has to know.
        material: what the questions were made of, files by their SHA-256.

    Raises:
        InputError: a length beyond the trained positions, an output folder in use, or a cost
            above the limit.
    """
    longest, what = max(lengths.items())
    what = f"{what} ({longest} tokens)"
    check_length(generator, longest, config.beyond_trained_positions, what=what)
    stop_ids = tokenizer.stop_ids()
    benchmark = Benchmark(
        kind=kind,
        config=config,
        samples=[_sample(question, tokenizer, sorted(stop_ids)) for question in questions],
        cells=_cells,
        decides={**_decisive(config), "material": dict(material or {})},
        metrics=metrics,
        notes=lambda entries: notes,
        material=material or {},
    )
    return run_benchmark(benchmark, writing(generator, stop_ids), generator, facts, cost)


def _sample(
    question: Question, tokenizer: PromptTokenizer, stop_ids: list[int]
) -> Sample[list[int]]:
    def judge(prompt: Prompt, ids: list[int]) -> dict[str, Any]:
        prediction = tokenizer.decode(ids)
        return {
            "task": question.task,
            "column": question.column,
            "index": question.index,
            "num_prompt_tokens": int(prompt.tokens.size),
            "was_truncated": prompt.was_truncated,
            "prediction": prediction,
            "references": prompt.references,
            "score": float(question.score(prediction, prompt.references)),
        }

    room = question.max_new_tokens
    key = sample_key(
        task=question.task,
        column=question.column,
        index=question.index,
        max_new_tokens=room,
        stop_ids=stop_ids,
        decides=dict(question.decides),
    )
    row = Row(
        num_tokens=question.num_tokens,
        make=lambda: dataclasses.replace(question.make(), max_new_tokens=room),
        judge=judge,
        source=f"the prompt of {question.task}",
        max_new_tokens=room,
    )
    return Sample(key, (row,))


def _cells(entries: Entries) -> tuple[ScoreCell, ...]:
    """Means of answers by task and column."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["task"], entry["column"]), []).append(entry)
    return tuple(
        mean_cell(
            *place,
            [entry["score"] for entry in group],
            {
                "num_prompt_tokens": sum(e["num_prompt_tokens"] for e in group) / len(group),
                "num_truncated": sum(e["was_truncated"] for e in group),
            },
        )
        for place, group in groups.items()
    )


def _decisive(config: Any) -> dict[str, Any]:
    """Of the configuration, what decides each figure and may not differ when going on."""
    free = {
        "output", "num_samples", "tasks", "lengths", "length_levels", "micro_batch_size",
        "beyond_trained_positions",
    }  # fmt: skip
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in free}
