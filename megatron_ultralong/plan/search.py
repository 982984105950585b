"""The layouts of a job on so many GPUs, fastest first, and why others cannot run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from functools import cached_property

from megatron_ultralong.plan.candidates import candidates, nearest_rule
from megatron_ultralong.plan.estimate import Estimate
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.job import Job

SAME_TIME = 0.01
"""Steps that are longer by less are taken for equal: the plan is not as exact as that."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found."""

    feasible: list[Estimate]
    """Fastest first."""
    refused: list[tuple[Estimate, str]]
    """Layouts that do not fit, those that nearly do first, and why."""
    rules: dict[str, int]
    """Layouts that break a rule, by an example of its message."""

    @cached_property
    def chosen(self) -> Estimate:
        """Of the layouts within a hundredth of the fastest the one that needs least beside it.

        First none that keeps anything in host memory, then the least memory of a GPU. One whose
        checkpoints fit the host is preferred to one whose do not.
        """
        options = [each for each in self.feasible if each.host.can_save] or self.feasible
        limit = (1 + SAME_TIME) * options[0].time.total
        equal = [each for each in options if each.time.total <= limit]
        return min(equal, key=lambda each: (each.host_per_node > 0, each.needed))


def search(job: Job, hardware: Hardware, pinned: Collection[str] = ()) -> Found:
    """Try every layout of ``job.num_gpus``.

    Args:
        job: its parallel sizes and kind of recomputation are varied.
        hardware: of every GPU.
        pinned: fields of the configuration that stay as they are.
    """
    feasible, refused = [], []
    rules: dict[str, int] = {}
    examples: dict[str, str] = {}
    for candidate in candidates(job, hardware, pinned):
        broken = nearest_rule(candidate)
        if broken is not None:
            # Without the rule's own way out, which nobody has planned: `use 1024`.
            example = re.sub(r"[:;,] use \d.*$", "", broken)
            example = examples.setdefault(broken.split(" (")[0], example)
            rules[example] = rules.get(example, 0) + 1
            continue
        estimate = Estimate(candidate, hardware)
        why = estimate.refusal
        if why is None:
            feasible.append(estimate)
        else:
            refused.append((estimate, why))
    feasible.sort(key=lambda each: each.time.total)
    refused.sort(key=lambda pair: pair[0].excess)
    return Found(feasible, refused, rules)
