"""A benchmark from its samples to its table: asked, scored, printed and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic

from megatron_ultralong.evaluation.asking.samples import Put, Reply, Sample, ask
from megatron_ultralong.evaluation.models.interface import Model
from megatron_ultralong.evaluation.models.opening import ModelFacts
from megatron_ultralong.evaluation.options import CostConfig
from megatron_ultralong.evaluation.results.file import write_results
from megatron_ultralong.evaluation.results.result import Kind, Result, ScoreCell, plain_values
from megatron_ultralong.evaluation.results.tables import score_table
from megatron_ultralong.program.journal import Journal, open_journal
from megatron_ultralong.program.terminal import Console

Entries = Sequence[Mapping[str, Any]]
"""What the journal has of a benchmark's samples, in their order."""


@dataclasses.dataclass(frozen=True)
class Benchmark(Generic[Reply]):
    """What is asked, and what is made of the replies."""

    kind: Kind
    config: Any
    """The verb's configuration, with ``output`` and ``micro_batch_size``."""
    samples: Sequence[Sample[Reply]]
    cells: Callable[[Entries], tuple[ScoreCell, ...]]
    decides: Mapping[str, Any]
    """JSON of what decides each figure beside the model, and may not differ when going on."""
    metrics: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Callable[[Entries], Sequence[str]] = lambda entries: ()
    material: Mapping[str, str] = dataclasses.field(default_factory=dict)
    description: str = ""
    """Beside the progress; empty: the benchmark's title."""


def run_benchmark(
    benchmark: Benchmark[Reply],
    put: Put[Reply],
    model: Model,
    facts: ModelFacts,
    cost: CostConfig,
) -> Result:
    """Ask all samples, print a table and write ``KIND.json``, ``KIND.png`` and every answer.

    Every rank calls it; the main one prints and writes.

    Raises:
        InputError: an output folder in use, or a cost above the limit.
    """
    identity = {**facts.identity, **benchmark.decides}
    output, name = benchmark.config.output, benchmark.kind.name
    with open_journal(output, name, identity, is_main=model.is_main) as journal:
        result = measure(benchmark, put, model, journal, facts, cost)
        if model.is_main:
            _show(result, journal)
    return result


def measure(
    benchmark: Benchmark[Reply],
    put: Put[Reply],
    model: Model,
    journal: Journal,
    facts: ModelFacts | None = None,
    cost: CostConfig | None = None,
) -> Result:
    """The result of asking all samples that the journal does not have; no files.

    Raises:
        InputError: as :func:`~megatron_ultralong.evaluation.asking.samples.ask`.
    """
    entries = ask(
        benchmark.samples,
        put,
        model,
        journal,
        micro_batch_size=benchmark.config.micro_batch_size,
        description=f"{benchmark.description or benchmark.kind.title} of {model.name}",
        shape=facts.model if facts else None,
        cost=cost,
    )
    return Result(
        kind=benchmark.kind,
        config=plain_values(benchmark.config),
        checkpoint=model.name,
        max_positions=facts.max_positions if facts else model.max_positions,
        cells=benchmark.cells(entries),
        metrics=benchmark.metrics,
        notes=tuple(benchmark.notes(entries)),
        material=benchmark.material,
        model=facts.record if facts else None,
    )


def _show(result: Result, journal: Journal) -> None:
    """Print the table, and write the files where there is a folder for them."""
    from megatron_ultralong.evaluation.results import pictures

    Console().print(score_table(result))
    if journal.folder is not None:
        picture = journal.folder / f"{result.kind.name}.png"
        if result.kind.rows == "depths":
            pictures.retrieval_picture([result], picture)
        else:
            pictures.task_picture(result, picture)
        write_results(journal.folder / f"{result.kind.name}.json", [result])
