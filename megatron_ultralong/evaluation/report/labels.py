"""Labels of measurements: a checkpoint's name, and what tells it from others of that name."""

from __future__ import annotations

import os
from collections.abc import Sequence

from megatron_ultralong.evaluation.report.measurement import Measurement, differences

Identity = tuple[str, int, str]
"""Name, trained positions, hash of the weights."""


def with_labels(found: Sequence[Measurement]) -> tuple[list[Measurement], list[str]]:
    """Measurements with labels that tell them apart, and what is to be said of it.

    Checkpoints of one name but other positions or weights are others. Several results of one
    checkpoint on one benchmark are all shown, and what differs between them is said.
    """
    named, notices = _checkpoints_apart(found)
    labelled: list[Measurement] = []
    for one in named:
        same = [other for other in named if (other.label, other.kind) == (one.label, one.kind)]
        if len(same) == 1:
            labelled.append(one)
            continue
        place = next(k for k, other in enumerate(same) if other is one)
        labelled.append(one.relabelled(f"{one.label} · {_apart(same)[place]}"))
        if place:
            notices.append(_several(same[0], one))
    return labelled, notices


def _checkpoints_apart(found: Sequence[Measurement]) -> tuple[list[Measurement], list[str]]:
    """Every checkpoint's label, the same on all benchmarks."""
    identities = _identities(found)
    labels: dict[Identity, str] = {}
    notices = []
    for name in dict.fromkeys(identity[0] for identity in identities):
        same = list(dict.fromkeys(identity for identity in identities if identity[0] == name))
        if len(same) == 1:
            labels[same[0]] = name
            continue
        firsts = [found[identities.index(identity)] for identity in same]
        for identity, part in zip(same, _what_differs(firsts), strict=True):
            labels[identity] = f"{name} ({part})"
        shown = ", ".join(f"'{labels[identity]}'" for identity in same)
        notices.append(
            f"{len(same)} checkpoints are called '{name}': they are shown as {shown}; "
            "--load NAME=FOLDER names them when they are evaluated"
        )
    pairs = zip(found, identities, strict=True)
    return [one.relabelled(labels[identity]) for one, identity in pairs], notices


def _identities(found: Sequence[Measurement]) -> list[Identity]:
    """A result that does not state its weights is of the one checkpoint of its name, if it can."""
    whole = [
        (one.checkpoint, one.max_positions, one.model.weights if one.model else "") for one in found
    ]
    known: dict[tuple[str, int], list[str]] = {}
    for name, positions, weights in whole:
        if weights and weights not in known.setdefault((name, positions), []):
            known[name, positions].append(weights)
    return [
        (name, positions, weights or next(iter(known.get((name, positions), [])), ""))
        if len(known.get((name, positions), [])) < 2
        else (name, positions, weights)
        for name, positions, weights in whole
    ]


def _what_differs(firsts: Sequence[Measurement]) -> list[str]:
    """The first of folder, positions and weights that tells checkpoints of one name apart."""
    models = [one.model for one in firsts]
    choices = [
        [model.folder if model else "" for model in models],
        [f"trained for {one.max_positions:,}" for one in firsts],
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
    title = first.result.kind.title_in_text
    found = differences(first, other)
    differ = "; ".join(f"{name}: {a} and {b}" for name, (a, b) in found.items())
    return (
        f"two results of '{first.checkpoint}' on {title}, {first.source} and {other.source}: both "
        f"are shown; {differ or 'their conditions are the same'}"
    )
