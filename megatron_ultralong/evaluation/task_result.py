"""Scores by task and length: the figures of a benchmark, and the file they are kept in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from megatron_ultralong.errors import InputError
from megatron_ultralong.evaluation.conditions import now, versions
from megatron_ultralong.evaluation.model_record import ModelRecord, model_record
from megatron_ultralong.evaluation.result_file import read_json, write_json

if TYPE_CHECKING:  # reading results needs no model
    from megatron_ultralong.evaluation.questions import Answer


@dataclasses.dataclass(frozen=True)
class TaskKind:
    """A benchmark of tasks."""

    title: str
    columns: Literal["lengths", "limit", "scores"] = "scores"
    """What a column is: a length; the limit at which prompts are cut, one for a checkpoint; or
    another score of the same questions."""


TASK_KINDS = {
    "ruler": TaskKind("RULER", "lengths"),
    "lv_eval": TaskKind("LV-Eval", "lengths"),
    "infinitebench": TaskKind("InfiniteBench", "limit"),
    "choices": TaskKind("Multiple choice by likelihood"),
    "chat": TaskKind("Assistant's turns word for word", "lengths"),
}
"""By the name that result files have."""
LOWER_IS_BETTER = frozenset({"loss", "perplexity"})
"""Columns whose scores are better when lower, and not of 100."""


@dataclasses.dataclass(frozen=True)
class TaskCell:
    """Questions of one task and one column."""

    task: str
    column: str
    """A length, such as ``131072`` or ``16k``, or the name of a score."""
    num_samples: int
    score: float
    """Mean over the questions, 0 to 100."""
    num_prompt_tokens: float
    """Mean."""
    num_truncated: int
    """Questions from whose text the middle was left out."""


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Scores of one checkpoint on one benchmark."""

    kind: str
    config: Mapping[str, Any]
    """The flags, as plain values."""
    checkpoint: str
    max_positions: int
    """Positions the checkpoint was trained for."""
    cells: tuple[TaskCell, ...]
    metrics: Mapping[str, str]
    """Metric of every task."""
    notes: tuple[str, ...]
    """Conditions that a reader has to know."""
    material: Mapping[str, str]
    """What the questions were made of, files by their SHA-256."""
    date: str
    versions: dict[str, str]
    model: ModelRecord | None = None
    """None: measured before results stated it."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in the order they were asked."""
        return tuple(dict.fromkeys(cell.task for cell in self.cells))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns in the order they were asked."""
        return tuple(dict.fromkeys(cell.column for cell in self.cells))

    def cell(self, task: str, column: str) -> TaskCell | None:
        """Questions of one task and column; None where there are none."""
        return next((c for c in self.cells if (c.task, c.column) == (task, column)), None)

    def mean(self, column: str | None = None) -> float | None:
        """Mean of the tasks' scores, of one column or over the columns' means."""
        if column is not None:
            scores = [cell.score for cell in self.cells if cell.column == column]
            return sum(scores) / len(scores) if scores else None
        means = [mean for column in self.columns if (mean := self.mean(column)) is not None]
        return sum(means) / len(means) if means else None

    def save(self, path: Path) -> None:
        """Write as JSON, with the means of the columns."""
        values = dataclasses.asdict(self)
        del values["kind"]
        values["means"] = {column: self.mean(column) for column in self.columns}
        write_json(path, self.kind, values)

    @classmethod
    def load(cls, path: str | Path, kind: str) -> TaskResult:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is absent, damaged or of another kind.
        """
        values = read_json(path, kind)
        try:
            del values["means"]
            values["cells"] = tuple(TaskCell(**cell) for cell in values["cells"])
            values["notes"] = tuple(values["notes"])
            values["model"] = model_record(values.get("model"))
            return cls(kind=kind, **values)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error!r}): evaluate again") from error


def task_result(
    kind: str,
    answers: Sequence[Answer],
    *,
    config: Any,
    checkpoint: str,
    max_positions: int,
    metrics: Mapping[str, str],
    notes: Sequence[str] = (),
    material: Mapping[str, str] | None = None,
    model: ModelRecord | None = None,
) -> TaskResult:
    """Means of ``answers`` by task and column."""
    groups: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer.task, answer.column), []).append(answer)
    cells = tuple(
        TaskCell(
            task=task,
            column=column,
            num_samples=len(group),
            score=100 * sum(answer.score for answer in group) / len(group),
            num_prompt_tokens=sum(answer.num_prompt_tokens for answer in group) / len(group),
            num_truncated=sum(answer.was_truncated for answer in group),
        )
        for (task, column), group in groups.items()
    )
    return TaskResult(
        kind=kind,
        config=dataclasses.asdict(config),
        checkpoint=checkpoint,
        max_positions=max_positions,
        cells=cells,
        metrics=dict(metrics),
        notes=tuple(notes),
        material=dict(material or {}),
        date=now(),
        versions=versions(),
        model=model,
    )
