"""A benchmark from its questions to its table: asked, scored, printed and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ultralong.evaluation.cost_config import CostConfig
from megatron_ultralong.evaluation.generator import Generator
from megatron_ultralong.evaluation.journal import Journal, open_journal
from megatron_ultralong.evaluation.models import ModelFacts
from megatron_ultralong.evaluation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.evaluation.questions import Answer, Question, ask
from megatron_ultralong.evaluation.results.file import write_results
from megatron_ultralong.evaluation.results.result import (
    Kind,
    Result,
    ScoreCell,
    mean_cell,
    plain_values,
)
from megatron_ultralong.evaluation.scorer import check_length
from megatron_ultralong.evaluation.tables import score_table
from megatron_ultralong.terminal import Console


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What is asked."""

    kind: Kind
    config: Any
    """The verb's configuration, with ``output``, ``micro_batch_size`` and
    ``beyond_trained_positions``."""
    questions: Sequence[Question]
    lengths: Mapping[int, str]
    """Greatest tokens of prompt and answer together, and what they belong to."""
    metrics: Mapping[str, str]
    notes: Sequence[str]
    material: Mapping[str, str]


def run_benchmark(
    benchmark: Benchmark,
    generator: Generator,
    facts: ModelFacts,
    tokenizer: PromptTokenizer,
    cost: CostConfig,
) -> Result:
    """Ask all questions, print a table and write ``KIND.json``, ``KIND.png`` and every answer.

    Raises:
        InputError: a length beyond the trained positions, an output folder in use, or a cost
            above the limit.
    """
    config = benchmark.config
    longest, what = max(benchmark.lengths.items())
    what = f"{what} ({longest} tokens)"
    check_length(generator, longest, config.beyond_trained_positions, what=what)
    identity = {**facts.identity, **_decisive(benchmark)}
    with open_journal(
        config.output, benchmark.kind.name, identity, is_main=generator.is_main
    ) as journal:
        answers = ask(
            benchmark.questions,
            generator,
            tokenizer,
            journal,
            facts.model,
            cost=cost,
            micro_batch_size=config.micro_batch_size,
            description=f"{benchmark.kind.title} of {facts.name}",
        )
        result = Result(
            kind=benchmark.kind,
            config=plain_values(config),
            checkpoint=facts.name,
            max_positions=facts.max_positions,
            cells=answer_cells(answers),
            metrics=benchmark.metrics,
            notes=tuple(benchmark.notes),
            material=benchmark.material,
            model=facts.record,
        )
        if generator.is_main:
            show(result, journal)
    return result


def answer_cells(answers: Sequence[Answer]) -> tuple[ScoreCell, ...]:
    """Means of ``answers`` by task and column."""
    groups: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer.task, answer.column), []).append(answer)
    return tuple(
        mean_cell(
            task,
            column,
            [answer.score for answer in group],
            {
                "num_prompt_tokens": sum(a.num_prompt_tokens for a in group) / len(group),
                "num_truncated": sum(a.was_truncated for a in group),
            },
        )
        for (task, column), group in groups.items()
    )


def show(result: Result, journal: Journal) -> None:
    """Print the table, and write the files where there is a folder for them."""
    from megatron_ultralong.evaluation.pictures import task_picture

    Console().print(score_table(result))
    if journal.folder is not None:
        task_picture(result, journal.folder / f"{result.kind.name}.png")
        write_results(journal.folder / f"{result.kind.name}.json", [result])


def _decisive(benchmark: Benchmark) -> dict[str, Any]:
    """Of the configuration, what decides each figure and may not differ when going on."""
    free = {
        "output", "num_samples", "tasks", "lengths", "length_levels", "micro_batch_size",
        "beyond_trained_positions",
    }  # fmt: skip
    values = dataclasses.asdict(benchmark.config)
    kept = {name: value for name, value in values.items() if name not in free}
    return {**kept, "material": dict(benchmark.material)}
