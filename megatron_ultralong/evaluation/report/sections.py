"""Sections of a report: measurements by benchmark and by conditions that can be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from megatron_ultralong.evaluation.report.loss_section import loss_section
from megatron_ultralong.evaluation.report.measurement import Measurement, conflicts
from megatron_ultralong.evaluation.report.paper import paper_table
from megatron_ultralong.evaluation.report.retrieval_section import retrieval_section
from megatron_ultralong.evaluation.report.section import Section
from megatron_ultralong.evaluation.report.task_section import task_section

_SECTIONS: dict[str, Callable[[Sequence[Measurement], str], Section]] = {
    "positions": loss_section,
    "depths": retrieval_section,
    "tasks": task_section,
}
"""By what the rows of a result are."""


def sections(measurements: Sequence[Measurement]) -> tuple[Section, ...]:
    """A section for every benchmark; several where its questions were not the same."""
    found: list[Section] = []
    for kind in dict.fromkeys(one.result.kind for one in measurements):
        groups = _groups([one for one in measurements if one.result.kind == kind])
        name = "loss" if kind.rows == "positions" else kind.name
        make = _SECTIONS[kind.rows]
        for number, group in enumerate(groups, 1):
            section = make(group, name if number == 1 else f"{name}-{number}")
            section = dataclasses.replace(section, paper=paper_table(group))
            if len(groups) > 1:
                section = dataclasses.replace(
                    section,
                    title=f"{section.title}, conditions {number} of {len(groups)}",
                    remarks=(_other_conditions(groups, number),),
                )
            found.append(section)
    return tuple(found)


def _groups(measurements: Sequence[Measurement]) -> list[list[Measurement]]:
    groups: list[list[Measurement]] = []
    for one in measurements:
        home = next(
            (group for group in groups if not any(conflicts(one, other) for other in group)), None
        )
        if home is None:
            groups.append([one])
        else:
            home.append(one)
    return groups


def _other_conditions(groups: Sequence[Sequence[Measurement]], number: int) -> str:
    """Why a group stands apart from the first; for the first, from the second."""
    ours, theirs = groups[number - 1][0], groups[1 if number == 1 else 0][0]
    group = groups[number - 1]
    for one in group:  # the pair that conflicts
        for other in groups[1 if number == 1 else 0]:
            if conflicts(one, other):
                ours, theirs = one, other
                break
    differ = "; ".join(f"{name}: {a} and {b}" for name, (a, b) in conflicts(ours, theirs).items())
    return (
        f"Figures of {ours.label} and {theirs.label} are not of the same questions ({differ}): "
        "they stand in tables of their own, and are not held against each other."
    )
