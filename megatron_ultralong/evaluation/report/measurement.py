"""One checkpoint on one benchmark: a column of the report, and its conditions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.loss_result import LossResult
from megatron_ultralong.evaluation.model_record import ModelRecord
from megatron_ultralong.evaluation.passkey_result import PasskeyCell, PasskeyResult
from megatron_ultralong.evaluation.task_result import TASK_KINDS, TaskCell, TaskResult

Result = LossResult | PasskeyResult | TaskResult

_OF_THE_RUN = {"output", "micro_batch_size", "beyond_trained_positions"}
"""Flags that no figure depends on."""
_OF_THE_GRID = {
    "num_samples", "tasks", "lengths", "depths", "length_levels", "max_length", "seq_length",
    "smallest_bin", "by",
}  # fmt: skip
"""Flags that decide which figures there are, and how exact they are, not what is asked."""
_FILES = {
    "data", "data_path", "haystack", "essays", "squad", "hotpotqa", "word_lists", "english_words",
    "fewshot_data",
}  # fmt: skip
"""Flags that name files: what the files hold stands in a result's ``material``."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one checkpoint reached on one benchmark."""

    label: str
    """Of its column: the checkpoint's name, and more where that would not tell it from others."""
    result: Result
    """A loss result holds this checkpoint alone."""
    source: Path
    """The file that it was read from."""

    @property
    def kind(self) -> str:
        """Benchmark, as result files name it."""
        return "position_loss" if isinstance(self.result, LossResult) else self.result.kind

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint, as it was given."""
        if isinstance(self.result, LossResult):
            return self.result.checkpoints[0].name
        return self.result.checkpoint

    @property
    def max_positions(self) -> int:
        """Positions that the checkpoint was trained for."""
        if isinstance(self.result, LossResult):
            return self.result.checkpoints[0].max_positions
        return self.result.max_positions

    @property
    def model(self) -> ModelRecord | None:
        """What is known of the checkpoint."""
        if isinstance(self.result, LossResult):
            return self.result.checkpoints[0].model
        return self.result.model

    @property
    def flags(self) -> dict[str, Any]:
        """The verb's flags, without the output folder."""
        config = self.result.config
        values = config if isinstance(config, Mapping) else dataclasses.asdict(config)
        return {name: value for name, value in values.items() if name != "output"}

    def relabelled(self, label: str) -> Measurement:
        """The same with another label."""
        return dataclasses.replace(self, label=label)


def same_but_for_file(one: Measurement, other: Measurement) -> bool:
    """Whether two files hold one result."""
    return one.kind == other.kind and one.result == other.result


def differences(one: Measurement, other: Measurement) -> dict[str, tuple[str, str]]:
    """All conditions in which two measurements of one benchmark differ, by name."""
    ours, theirs = conditions(one), conditions(other)
    names = [*ours, *(name for name in theirs if name not in ours)]
    values = {name: (ours.get(name, "-"), theirs.get(name, "-")) for name in names}
    return {name: pair for name, pair in values.items() if pair[0] != pair[1] and name != "file"}


def conflicts(one: Measurement, other: Measurement) -> dict[str, tuple[str, str]]:
    """Conditions that keep two measurements from standing in one table: other questions.

    Numbers of samples, lengths and tasks may differ. Files count by what they hold where both
    results state it, and by their names where one does not.
    """
    ours, theirs = _decisive(one), _decisive(other)
    has_material = bool(one.result.material) and bool(other.result.material)
    pairs = {name: (ours[name], theirs[name]) for name in ours if name in theirs}
    if has_material:
        pairs = {name: pair for name, pair in pairs.items() if name not in _FILES}
        pairs |= _materials(one.result, other.result)
    return {
        name: (_shown(a), _shown(b)) for name, (a, b) in pairs.items() if _plain(a) != _plain(b)
    }


def _decisive(measurement: Measurement) -> dict[str, Any]:
    free = _OF_THE_RUN | _OF_THE_GRID
    found = {name: value for name, value in measurement.flags.items() if name not in free}
    if isinstance(measurement.result, LossResult):
        found["rows"] = measurement.result.num_rows  # the first ones: other rows, other text
    return found


def _materials(one: Result, other: Result) -> dict[str, tuple[str, str]]:
    """Material of both; where they have other tasks, that of the tasks in common."""
    names = {*one.material, *other.material}
    if isinstance(one, TaskResult) and isinstance(other, TaskResult) and one.tasks != other.tasks:
        names = {*one.material} & {*other.material}
    return {
        name: (one.material.get(name, "none"), other.material.get(name, "none"))
        for name in sorted(names)
    }


def conditions(measurement: Measurement) -> dict[str, str]:
    """Everything that a reader has to know beside the figures, by name, in words."""
    result, model = measurement.result, measurement.model
    found = {"checkpoint": measurement.checkpoint}
    if model is None:
        found["model"] = "not stated: measured before results stated it"
    else:
        found["folder"] = model.folder
        found["model"] = f"{model.num_parameters:,} parameters, weights {model.weights}"
        found["run by"] = f"{model.engine}, {model.precision}"
    found["trained positions"] = f"{measurement.max_positions:,}"
    found["samples"] = _samples(result)
    if isinstance(result, TaskResult):
        asked = [cell for cell in _asked(result) if isinstance(cell, TaskCell)]
        cut = sum(cell.num_truncated for cell in asked)
        found["truncated prompts"] = f"{cut:,} of {sum(cell.num_samples for cell in asked):,}"
    for name, value in measurement.flags.items():
        if name not in _OF_THE_RUN:
            found[f"--{name.replace('_', '-')}"] = _shown(value)
    for name, digest in result.material.items():
        found[f"content of {name}"] = digest
    if isinstance(result, TaskResult) and result.notes:
        found["notes"] = "; ".join(result.notes)
    found["date"] = result.date
    found["versions"] = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    found["file"] = str(measurement.source)
    return {name: value or "-" for name, value in found.items()}


def _samples(result: Result) -> str:
    if isinstance(result, LossResult):
        return f"{result.num_rows} rows of {result.seq_length:,} tokens"
    what = "prompts" if isinstance(result, PasskeyResult) else "questions"
    total = sum(cell.num_samples for cell in _asked(result))
    return f"{counts(result)} {what} a cell, {total:,} in all"


def _asked(result: PasskeyResult | TaskResult) -> list[PasskeyCell | TaskCell]:
    """Cells of questions of their own: not a second score of the same ones."""
    if isinstance(result, PasskeyResult):
        return [*result.cells]
    has_scores = TASK_KINDS[result.kind].columns == "scores"
    return [c for c in result.cells if not has_scores or c.column == result.columns[0]]


def counts(result: PasskeyResult | TaskResult) -> str:
    """Samples of a cell: ``100``, or ``90 to 100``."""
    found = sorted({cell.num_samples for cell in result.cells})
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def _plain(value: Any) -> Any:
    """As JSON gives it back: lists for tuples."""
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
