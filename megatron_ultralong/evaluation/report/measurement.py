"""One checkpoint on one benchmark: a column of the report, its label and its conditions."""

import dataclasses
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.results.result import Result, ScoreCell
from megatron_ultralong.evaluation.results.tables import counts
from megatron_ultralong.program.errors import counted

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
_PLACES = {"harness": {"data", "include_path"}}
"""Flags that say where the files of tasks are, which go by names of their own; by benchmark."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one checkpoint reached on one benchmark."""

    label: str
    """Of its column: the checkpoint's name, and more where that would not tell it from others."""
    result: Result
    source: Path
    """The file that it was read from."""


def differences(one: Measurement, other: Measurement) -> dict[str, tuple[str, str]]:
    """All conditions in which two measurements of one benchmark differ, by name."""
    left, right = conditions(one), conditions(other)
    values = {name: (left.get(name, "-"), right.get(name, "-")) for name in left | right}
    return {name: pair for name, pair in values.items() if pair[0] != pair[1] and name != "file"}


def conflicts(one: Measurement, other: Measurement) -> dict[str, tuple[str, str]]:
    """Conditions that keep two measurements from standing in one table: other questions.

    Numbers of samples, lengths and tasks may differ; the metric of a task, which has its version
    and its number of examples if it is of the harness, may not. Files count by what they hold where
    both results state it, and by their names where one does not.
    """
    left, right = _decisive(one.result), _decisive(other.result)
    pairs = {name: (left[name], right[name]) for name in left if name in right}
    if one.result.material and other.result.material:
        pairs = {name: pair for name, pair in pairs.items() if name not in _FILES}
        pairs |= _materials(one.result, other.result)
    asked, also_asked = one.result.metrics, other.result.metrics
    pairs |= {task: (asked[task], also_asked[task]) for task in asked if task in also_asked}
    return {name: (_shown(a), _shown(b)) for name, (a, b) in pairs.items() if a != b}


def _decisive(result: Result) -> dict[str, Any]:
    free = _OF_THE_RUN | _OF_THE_GRID | _PLACES.get(result.kind.name, set())
    found = {name: value for name, value in result.config.items() if name not in free}
    if result.num_packed_rows:
        found["rows"] = result.num_packed_rows  # the first ones: other rows, other text
    return found


def _materials(one: Result, other: Result) -> dict[str, tuple[str, str]]:
    """Material of both; where they have other tasks, that of the tasks in common."""
    left, right = one.material, other.material
    have_others = one.kind.rows == "tasks" and one.rows != other.rows
    names = left.keys() & right.keys() if have_others else left.keys() | right.keys()
    return {name: (left.get(name, "none"), right.get(name, "none")) for name in sorted(names)}


def conditions(measurement: Measurement) -> dict[str, str]:
    """Everything that a reader has to know beside the figures, by name, in words."""
    result, model = measurement.result, measurement.result.model
    found = {"checkpoint": result.checkpoint}
    if model is None:
        found["model"] = "not stated: measured before results stated it"
    else:
        found["folder"] = model.folder
        found["model"] = f"{model.num_parameters:,} parameters, weights {model.weights}"
        if model.digest:
            found["content of weights"] = model.digest
        if model.rotary:
            found["rotary embedding"] = model.rotary
        found["run by"] = f"{model.engine}, {model.precision}"
    found["trained positions"] = f"{result.max_positions:,}"
    found["samples"] = _samples(result)
    if cut := [cell for cell in _asked(result) if _TRUNCATED in cell.figures]:
        num_cut = int(sum(cell.figures[_TRUNCATED] for cell in cut))
        found["truncated prompts"] = f"{num_cut:,} of {sum(cell.num_samples for cell in cut):,}"
    for name, value in result.config.items():
        if name not in _OF_THE_RUN:
            found[f"--{name.replace('_', '-')}"] = _shown(value)
    found |= {f"content of {name}": digest for name, digest in result.material.items()}
    if result.notes:
        found["notes"] = "; ".join(result.notes)
    found["date"] = result.date
    found["versions"] = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    found["file"] = str(measurement.source)
    return {name: value or "-" for name, value in found.items()}


def _samples(result: Result) -> str:
    if result.kind.rows == "positions":
        return f"{counted(result.num_packed_rows, 'row')} of {result.num_positions:,} tokens"
    what = "prompts" if result.kind.rows == "depths" else "questions"
    total = sum(cell.num_samples for cell in _asked(result))
    return f"{counts(result)} {what} a cell, {total:,} in all"


_TRUNCATED = "num_truncated"
"""The figure of cells; of the harness a note says how many."""


def _asked(result: Result) -> list[ScoreCell]:
    """Cells of samples of their own: not a second score of the same ones.

    Of scores, the cell of each row that has most samples: rows may have different scores.
    """
    if result.kind.columns != "scores":
        return list(result.cells)
    of_row: dict[str, ScoreCell] = {}
    for cell in result.cells:
        if cell.row not in of_row or cell.num_samples > of_row[cell.row].num_samples:
            of_row[cell.row] = cell
    return list(of_row.values())


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


Identity = tuple[str, str, int]
"""What a checkpoint's weights hold, how it turns positions, and its trained positions."""


def with_labels(found: Sequence[Measurement]) -> tuple[list[Measurement], list[str]]:
    """Measurements with labels that tell them apart, and what is to be said of it.

    Checkpoints of one name but other positions or weights are others; the same weights under
    several names are one. Several results of one checkpoint on one benchmark are all shown, and
    what differs between them is said.
    """
    identities = _identities(found)
    labels, notices = _checkpoint_labels(found, identities)
    columns: dict[tuple[Identity, str], list[Measurement]] = {}
    for one, identity in zip(found, identities, strict=True):
        named = dataclasses.replace(one, label=labels[identity])
        columns.setdefault((identity, one.result.kind.name), []).append(named)
    parted = {id(same[0].result): same[0] for same in columns.values()}
    for same in columns.values():
        notices += [_several(same[0], one) for one in same[1:]]
        names = [one.result.checkpoint for one in same]
        parts = names if len({*names}) == len(same) else _apart(same)
        for one, part in zip(same, parts, strict=True) if len(same) > 1 else ():
            parted[id(one.result)] = dataclasses.replace(one, label=f"{one.label} · {part}")
    return [parted[id(one.result)] for one in found], notices


def _identities(found: Sequence[Measurement]) -> list[Identity]:
    """A result that does not state its weights is of the one checkpoint of its name, if it can."""
    models = [one.result.model for one in found]
    contents = {model.weights: model.digest for model in models if model and model.digest}
    weights = [m.digest or contents.get(m.weights, m.weights) if m else "" for m in models]
    names = [(one.result.checkpoint, one.result.max_positions) for one in found]
    weights = _with_known(weights, names)
    weights = [one or name for one, (name, _) in zip(weights, names, strict=True)]
    rotary = [m.rotary if m else "" for m in models]
    rotary = _with_known(rotary, [*zip(names, weights, strict=True)])
    rotary = _with_known(rotary, weights)
    return [
        (one, how, positions)
        for one, how, (_, positions) in zip(weights, rotary, names, strict=True)
    ]


def _with_known(values: Sequence[str], keys: Sequence[Hashable]) -> list[str]:
    """Values, the empty ones replaced by the only other one of their key, if there is but one."""
    known: dict[Hashable, set[str]] = {}
    for key, value in zip(keys, values, strict=True):
        known.setdefault(key, set()).update(filter(None, [value]))
    return [
        value or ("".join(known[key]) if len(known[key]) == 1 else "")
        for key, value in zip(keys, values, strict=True)
    ]


def _checkpoint_labels(
    found: Sequence[Measurement], identities: Sequence[Identity]
) -> tuple[dict[Identity, str], list[str]]:
    """Every checkpoint's label, the same on all benchmarks, and what is to be said of it."""
    names: dict[Identity, dict[str, Measurement]] = {}
    for one, identity in zip(found, identities, strict=True):
        names.setdefault(identity, {}).setdefault(one.result.checkpoint, one)
    labels = {identity: " = ".join(same) for identity, same in names.items()}
    notices = [
        f"{' and '.join(map(repr, same))} are the same weights ({identity[0][:16]}): they are "
        f"one checkpoint, '{labels[identity]}'"
        for identity, same in names.items()
        if len(same) > 1
    ]
    for name in dict.fromkeys(labels.values()):
        same = [identity for identity in names if labels[identity] == name]
        if len(same) == 1:
            continue
        firsts = [next(iter(names[identity].values())) for identity in same]
        for identity, part in zip(same, _what_differs(firsts), strict=True):
            labels[identity] = f"{name} ({part})"
        shown = ", ".join(f"'{labels[identity]}'" for identity in same)
        notices.append(
            f"{counted(len(same), 'checkpoint')} are called '{name}': they are shown as {shown}; "
            "--load NAME=FOLDER names them when they are evaluated"
        )
    return labels, notices


def _what_differs(firsts: Sequence[Measurement]) -> list[str]:
    """The first of folder, positions, rotary embedding and weights that tells those of one name
    apart.
    """
    models = [one.result.model for one in firsts]
    choices = [
        [model.folder if model else "" for model in models],
        [f"trained for {one.result.max_positions:,}" for one in firsts],
        [model.rotary if model else "" for model in models],
        [f"weights {model.weights[:8]}" if model else "weights not stated" for model in models],
    ]
    for parts in choices:
        if len(set(parts)) == len(parts) and all(parts):
            return parts
    return [", ".join(filter(None, parts)) for parts in zip(*choices, strict=True)]


def _apart(same: Sequence[Measurement]) -> list[str]:
    """What tells the files of ``same`` from each other: their paths without what all share."""
    paths = [os.path.normpath(one.source).split(os.sep) for one in same]
    if len({tuple(path) for path in paths}) < len(paths):  # two of one file
        return [f"{one.source.name}, {k}" for k, one in enumerate(same, 1)]
    shortest = min(map(len, paths))
    start = next((k for k in range(shortest) if len({path[k] for path in paths}) > 1), shortest - 1)
    stop = next(
        (k for k in range(shortest - start) if len({path[-1 - k] for path in paths}) > 1), 0
    )
    return ["/".join(path[start : len(path) - stop]) for path in paths]


def _several(first: Measurement, other: Measurement) -> str:
    kind = first.result.kind
    # Names stay as they are, words lose their capital within a sentence.
    title = kind.title if kind.rows == "tasks" else kind.title[0].lower() + kind.title[1:]
    found = differences(first, other)
    differ = "; ".join(f"{name}: {a} and {b}" for name, (a, b) in found.items())
    return (
        f"two results of '{first.result.checkpoint}' on {title}, {first.source} and "
        f"{other.source}: both are shown; {differ or 'their conditions are the same'}"
    )
