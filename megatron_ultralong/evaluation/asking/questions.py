"""A benchmark from its samples, or from questions to be answered in writing, to its table."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.asking import samples
from megatron_ultralong.evaluation.models import interface, language_models
from megatron_ultralong.evaluation.results import file, result, tables
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program import ending, terminal
from megatron_ultralong.program.journal import Journal, open_journal, sample_key

Entries = Sequence[Mapping[str, Any]]
"""What the journal has of a benchmark's samples, in their order."""
Places = Mapping[tuple[str, str], Callable[[Mapping[str, Any]], bool]]
"""Rows and columns of the table, and which entries count there."""


def run_benchmark(
    asked: Sequence[samples.Sample[samples.Reply]],
    put: samples.Put[samples.Reply],
    subject: language_models.Subject[interface.Model],
    *,
    kind: result.Kind,
    config: Any,
    cells: Callable[[Entries], tuple[result.ScoreCell, ...]],
    decides: Mapping[str, Any],
    metrics: Mapping[str, str] | None = None,
    notes: Callable[[Entries], Sequence[str]] = lambda entries: (),
    material: Mapping[str, str],
    description: str = "",
) -> result.Result:
    """Ask all samples, print a table and write ``KIND.json``, ``KIND.png`` and every answer.

    Every rank calls it; the main one prints and writes. ``config`` is the verb's, with ``output``
    and ``micro_batch_size``. ``decides`` is JSON of what decides each figure beside the model, and
    may not differ when continuing. ``description`` stands beside the progress, by default the
    benchmark's title.

    Raises:
        InputError: an output folder in use, or a cost above the limit.
    """
    model, facts = subject.model, subject.facts
    identity = {**facts.identity, **decides}
    with open_journal(config.output, kind.name, identity, is_main=model.is_main) as journal:
        entries = samples.ask(
            *(asked, put, model, journal),
            micro_batch_size=config.micro_batch_size,
            description=f"{description or kind.title} of {model.name}",
            shape=facts.model,
            cost=subject.cost,
        )
        measured = subject.result(
            *(kind, config, cells(entries)),
            metrics=metrics or {},
            notes=tuple(notes(entries)),
            material=material,
        )
        if model.is_main:
            show(measured, journal)
    if model.is_main and config.output:
        draw(measured, config.output)
    return measured


def show(measured: result.Result, journal: Journal) -> None:
    """Print the table, and write the result where there is a folder for it."""
    terminal.Console().print(tables.score_table(measured))
    if journal.folder is not None:
        file.write_results(journal.folder / f"{measured.kind.name}.json", [measured])


def draw(measured: result.Result, output: str) -> None:
    """Draw the picture into the finished folder."""
    from megatron_ultralong.evaluation.results import pictures

    pictures.draw([measured], Path(output) / f"{measured.kind.name}.png")


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
    make: Callable[[], samples.Prompt]
    score: Callable[[str, Any], float]
    """Of what was written and the references: 0 to 1."""


def evaluate_questions(
    questions: Sequence[Question],
    subject: language_models.Answerer,
    *,
    kind: result.Kind,
    config: Any,
    lengths: Mapping[int, str],
    metrics: Mapping[str, str],
    notes: Sequence[str] = (),
    notes_of: Callable[[Entries], Sequence[str]] = lambda entries: (),
    material: Mapping[str, str] | None = None,
    places: Places | None = None,
) -> result.Result:
    """Ask all questions, print a table and write ``KIND.json``, ``KIND.png`` and every answer.

    Every rank calls this; the main one prints and writes.

    Args:
        questions: what is asked.
        subject: the model.
        kind: the benchmark.
        config: of the verb, with the fields of :class:`AskingConfig`.
        lengths: greatest tokens of prompt and answer together, and what they belong to.
        metrics: the metric of every task.
        notes: conditions that a reader has to know.
        notes_of: others, which the answers decide.
        material: what the questions were made of, files by their SHA-256.
        places: which answers count where, in the table's order; None: by task and column.

    Raises:
        InputError: a length beyond the trained positions, an output folder in use, or a cost
            above the limit.
    """
    longest, what = max(lengths.items())
    what = f"{what} ({longest} tokens)"
    interface.check_length(subject.model, longest, config.beyond_trained_positions, what=what)
    tokenizer = subject.tokenizer
    stop_ids = tokenizer.stop_ids(getattr(config, "prompt_template", "base"))
    if note := tokenizer.not_applied():
        notes = [*notes, note]
        if subject.model.is_main:
            ending.tell(f"warning: {note}")
    return run_benchmark(
        [_sample(question, tokenizer, sorted(stop_ids)) for question in questions],
        *(samples.writing(subject.model, stop_ids), subject),
        kind=kind,
        config=config,
        cells=functools.partial(_cells, places),
        decides={**_decisive(config), "material": dict(material or {})},
        metrics=metrics,
        notes=lambda entries: [*notes, *notes_of(entries)],
        material=material or {},
    )


def _sample(
    question: Question, tokenizer: PromptTokenizer, stop_ids: list[int]
) -> samples.Sample[list[int]]:
    room = question.max_new_tokens
    place = {"task": question.task, "column": question.column, "index": question.index}
    others = {"max_new_tokens": room, "stop_ids": stop_ids, "decides": dict(question.decides)}
    key = sample_key(**place, **others)

    def judge(prompt: samples.Prompt, ids: list[int]) -> dict[str, Any]:
        prediction = tokenizer.decode(ids)
        return {
            **place,
            "num_prompt_tokens": int(prompt.tokens.size),
            "was_truncated": prompt.was_truncated,
            "prediction": prediction,
            "references": prompt.references,
            "score": float(question.score(prediction, prompt.references)),
        }

    row = samples.Row(
        num_tokens=question.num_tokens,
        make=lambda: dataclasses.replace(question.make(), max_new_tokens=room),
        judge=judge,
        source=f"the prompt of {question.task}",
        max_new_tokens=room,
    )
    return samples.Sample(key, (row,))


def _cells(places: Places | None, entries: Entries) -> tuple[result.ScoreCell, ...]:
    """Means of answers by row and column."""
    if places is None:
        groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for entry in entries:
            groups.setdefault((entry["task"], entry["column"]), []).append(entry)
    else:
        groups = {place: [*filter(counts, entries)] for place, counts in places.items()}
    return tuple(
        result.mean_cell(
            *place,
            [entry["score"] for entry in group],
            {
                "num_prompt_tokens": sum(e["num_prompt_tokens"] for e in group) / len(group),
                "num_truncated": sum(e["was_truncated"] for e in group),
            },
        )
        for place, group in groups.items()
        if group
    )


def _decisive(config: Any) -> dict[str, Any]:
    """Of the configuration, what decides each figure and may not differ when continuing."""
    free = {
        "output", "num_samples", "tasks", "lengths", "length_levels", "micro_batch_size",
        "beyond_trained_positions",
    }  # fmt: skip
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in free}
