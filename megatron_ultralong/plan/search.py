"""The layouts of a job on so many GPUs, fastest first, and why others cannot run."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator
from functools import cached_property

from megatron_ultralong.config.run import RecomputeGranularity
from megatron_ultralong.plan.estimate import Estimate
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.job import Job
from megatron_ultralong.program.errors import InputError

MOST_STAGES = 32
"""Of a pipeline; longer ones wait more than they save."""
_STAGE_ENDS = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
LAYOUT_FLAGS = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "sequence_parallel",
    *_STAGE_ENDS,
    "recompute_granularity",
    "offload_activations",
)
"""What is chosen where it is not typed."""

_KINDS: tuple[tuple[RecomputeGranularity, bool], ...] = (
    ("keep_attention", False),
    ("full", False),
    ("keep_attention", True),
    ("full", True),
    ("none", False),
)


def candidates(job: Job, hardware: Hardware) -> Iterator[Job]:
    """Every layout of ``job.num_gpus``, those included that break a rule.

    Tensor parallelism stays inside a node.
    """
    parallel, memory, pinned = job.parallel, job.memory, job.pinned
    divisors = [n for n in range(1, job.num_gpus + 1) if job.num_gpus % n == 0]

    def sizes(name: str, options: list[int]) -> list[int]:
        return [getattr(parallel, name)] if name in pinned else options

    tps = sizes("tensor_model_parallel_size", [n for n in divisors if n <= hardware.gpus_per_node])
    stages = min(MOST_STAGES, job.model.num_layers)
    pps = sizes("pipeline_model_parallel_size", [n for n in divisors if n <= stages])
    cps = sizes("context_parallel_size", divisors)
    kinds = [
        (kind, offload)
        for kind, offload in _KINDS
        if ("recompute_granularity" not in pinned or kind == memory.recompute_granularity)
        and ("offload_activations" not in pinned or offload == memory.offload_activations)
    ]
    for tp, pp, cp in itertools.product(tps, pps, cps):
        if job.num_gpus % (tp * pp * cp):
            continue
        split = job.with_flags(
            tensor_model_parallel_size=tp,
            pipeline_model_parallel_size=pp,
            context_parallel_size=cp,
            sequence_parallel=(
                parallel.sequence_parallel if "sequence_parallel" in pinned else tp > 1
            ),
        )
        if pinned.isdisjoint(_STAGE_ENDS):
            ends = stage_ends(job.model.num_layers, pp)
            split = split.with_flags(**dict(zip(_STAGE_ENDS, ends, strict=True)))
        for kind, offload in kinds:
            yield split.with_flags(recompute_granularity=kind, offload_activations=offload)


def stage_ends(num_layers: int, stages: int) -> tuple[int, int]:
    """Layers of the first and the last stage, (0, 0) where all have as many.

    ``(126, 16) -> (7, 7)``: the 14 between have 8. The longest stage is as short as can be; of
    two ends the last, which has the output layer and the loss too, is not the longer one.
    """
    if num_layers % stages == 0:
        return 0, 0
    options = [
        (max(middle, -(-ends // 2)), -(-ends // 2), ends // 2)
        for middle in (num_layers // stages, -(-num_layers // stages))
        if middle >= 1 and (ends := num_layers - (stages - 2) * middle) >= 2
    ]
    return min(options)[1:] if options else (0, 0)


def broken_rule(check: Callable[[], None]) -> str | None:
    """The rule that a check finds broken, None where all hold."""
    try:
        check()
    except InputError as error:
        return str(error)
    return None


SAME_TIME = 0.01
"""Steps that are longer by less are taken for equal: the plan is not as exact as that."""

MARGIN_TIME = 0.03
"""By which a step may be longer in a layout that fits for sure, and without host memory."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found."""

    feasible: list[Estimate]
    """Fastest first."""
    refused: list[Estimate]
    """Layouts that do not fit, those that nearly do first."""
    rules: dict[str, int]
    """Layouts that break a rule, by an example of its message."""

    @cached_property
    def chosen(self) -> Estimate:
        """A safe layout, where it is slower than the fastest by :data:`MARGIN_TIME` at the most.

        Safe is what keeps nothing in host memory and leaves more of a GPU than the estimate may be
        off; else what does the second; else any. Of those whose times are the same it is the one
        that takes no host memory, then the least memory of a GPU. One whose checkpoints fit the
        host is preferred to all whose do not.
        """
        options = [each for each in self.feasible if each.host.can_save] or self.feasible
        sure = [each for each in options if not each.is_tight]
        alone = [each for each in sure if not each.host.offloaded]
        limit = (1 + MARGIN_TIME) * options[0].time.total
        group = next(one for one in (alone, sure, options) if one and one[0].time.total <= limit)
        limit = (1 + SAME_TIME) * group[0].time.total
        equal = [each for each in group if each.time.total <= limit]
        return min(equal, key=lambda each: (each.host.offloaded > 0, each.needed))


def search(job: Job, hardware: Hardware) -> Found:
    """Try every layout of ``job.num_gpus``: all sizes and kinds of recomputation not pinned."""
    feasible: list[Estimate] = []
    refused: list[Estimate] = []
    rules: dict[str, int] = {}
    examples: dict[str, str] = {}
    for candidate in candidates(job, hardware):
        broken = broken_rule(candidate.check)
        if broken is not None:
            # Without the rule's own fix, which nobody has planned: `use 1024`.
            example = re.sub(r"[:;,] use \d.*$", "", broken)
            example = examples.setdefault(broken.split(" (")[0], example)
            rules[example] = rules.get(example, 0) + 1
            continue
        estimate = Estimate(candidate, hardware)
        (refused if estimate.refusal else feasible).append(estimate)
    feasible.sort(key=lambda each: each.time.total)
    refused.sort(key=lambda each: each.excess)
    return Found(feasible, refused, rules)
