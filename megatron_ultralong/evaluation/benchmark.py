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
from megatron_ultralong.evaluation.questions import Question, ask
from megatron_ultralong.evaluation.scorer import check_length
from megatron_ultralong.evaluation.task_result import TASK_KINDS, TaskResult, task_result
from megatron_ultralong.evaluation.task_tables import task_picture, task_table
from megatron_ultralong.terminal import Console


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What is asked."""

    kind: str
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
) -> TaskResult:
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
        config.output, benchmark.kind, identity, is_main=generator.is_main
    ) as journal:
        answers = ask(
            benchmark.questions,
            generator,
            tokenizer,
            journal,
            facts.model,
            cost=cost,
            micro_batch_size=config.micro_batch_size,
            description=f"{TASK_KINDS[benchmark.kind].title} of {facts.name}",
        )
        result = task_result(
            benchmark.kind,
            answers,
            config=config,
            checkpoint=facts.name,
            max_positions=facts.max_positions,
            metrics=benchmark.metrics,
            notes=benchmark.notes,
            material=benchmark.material,
            model=facts.record,
        )
        if generator.is_main:
            show(result, journal)
    return result


def show(result: TaskResult, journal: Journal) -> None:
    """Print the table, and write the files where there is a folder for them."""
    Console().print(task_table(result))
    if journal.folder is not None:
        task_picture(result, journal.folder / f"{result.kind}.png")
        result.save(journal.folder / f"{result.kind}.json")


def _decisive(benchmark: Benchmark) -> dict[str, Any]:
    """Of the configuration, what decides each figure and may not differ when going on."""
    free = {
        "output", "num_samples", "tasks", "lengths", "length_levels", "micro_batch_size",
        "beyond_trained_positions",
    }  # fmt: skip
    values = dataclasses.asdict(benchmark.config)
    kept = {name: value for name, value in values.items() if name not in free}
    return {**kept, "material": dict(benchmark.material)}
