"""One checkpoint on one benchmark: a column of the report, and its conditions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.results.model import ModelRecord
from megatron_ultralong.evaluation.results.result import Result, ScoreCell
from megatron_ultralong.evaluation.results.tables import counts

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
    source: Path
    """The file that it was read from."""

    @property
    def kind(self) -> str:
        """Benchmark, as result files name it."""
        return self.result.kind.name

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint, as it was given."""
        return self.result.checkpoint

    @property
    def max_positions(self) -> int:
        """Positions that the checkpoint was trained for."""
        return self.result.max_positions

    @property
    def model(self) -> ModelRecord | None:
        """What is known of the checkpoint."""
        return self.result.model

    @property
    def labelled(self) -> Result:
        """The result under its label, as tables and pictures show it."""
        return dataclasses.replace(self.result, checkpoint=self.label)

    @property
    def flags(self) -> dict[str, Any]:
        """The verb's flags, without the output folder."""
        return {name: value for name, value in self.result.config.items() if name != "output"}

    def relabelled(self, label: str) -> Measurement:
        """The same with another label."""
        return dataclasses.replace(self, label=label)


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
    return {name: (_shown(a), _shown(b)) for name, (a, b) in pairs.items() if a != b}


def _decisive(measurement: Measurement) -> dict[str, Any]:
    free = _OF_THE_RUN | _OF_THE_GRID
    found = {name: value for name, value in measurement.flags.items() if name not in free}
    if number := measurement.result.num_packed_rows:
        found["rows"] = number  # the first ones: other rows, other text
    return found


def _materials(one: Result, other: Result) -> dict[str, tuple[str, str]]:
    """Material of both; where they have other tasks, that of the tasks in common."""
    names = {*one.material, *other.material}
    if one.kind.rows == "tasks" and one.rows != other.rows:
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
    if result.kind.rows == "tasks":
        asked = _asked(result)
        cut = int(sum(cell.figures.get("num_truncated", 0) for cell in asked))
        found["truncated prompts"] = f"{cut:,} of {sum(cell.num_samples for cell in asked):,}"
    for name, value in measurement.flags.items():
        if name not in _OF_THE_RUN:
            found[f"--{name.replace('_', '-')}"] = _shown(value)
    for name, digest in result.material.items():
        found[f"content of {name}"] = digest
    if result.notes:
        found["notes"] = "; ".join(result.notes)
    found["date"] = result.date
    found["versions"] = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    found["file"] = str(measurement.source)
    return {name: value or "-" for name, value in found.items()}


def _samples(result: Result) -> str:
    if result.kind.rows == "positions":
        return f"{result.num_packed_rows} rows of {result.num_positions:,} tokens"
    what = "prompts" if result.kind.rows == "depths" else "questions"
    total = sum(cell.num_samples for cell in _asked(result))
    return f"{counts(result)} {what} a cell, {total:,} in all"


def _asked(result: Result) -> list[ScoreCell]:
    """Cells of samples of their own: not a second score of the same ones."""
    has_scores = result.kind.columns == "scores"
    return [c for c in result.cells if not has_scores or c.column == result.columns[0]]


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
