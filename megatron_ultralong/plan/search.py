"""The layouts of a job on so many GPUs, fastest first, and why others cannot run."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterator
from functools import cached_property

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.run import RecomputeGranularity
from megatron_ultralong.plan.estimate import Estimate
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.job import Job
from megatron_ultralong.program.errors import InputError

MOST_STAGES = 32
"""Of a pipeline; longer ones wait more than they save."""
LAYOUT_FLAGS = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "sequence_parallel",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
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


def candidates(job: Job, hardware: Hardware, pinned: Collection[str]) -> Iterator[Job]:
    """Every layout of ``job.num_gpus``, those included that break a rule.

    Args:
        job: what is planned; fields in ``pinned`` stay as they are.
        hardware: of every GPU; tensor parallelism stays inside a node.
        pinned: fields of the configuration.
    """
    parallel, memory = job.parallel, job.memory
    divisors = _divisors(job.num_gpus)

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
        split = dataclasses.replace(
            parallel,
            tensor_model_parallel_size=tp,
            pipeline_model_parallel_size=pp,
            context_parallel_size=cp,
            sequence_parallel=(
                parallel.sequence_parallel if "sequence_parallel" in pinned else tp > 1
            ),
        )
        split = with_stages(split, job.model.num_layers, pinned)
        for kind, offload in kinds:
            kept = dataclasses.replace(
                memory, recompute_granularity=kind, offload_activations=offload
            )
            config = dataclasses.replace(job.config, parallel=split, memory=kept)
            yield dataclasses.replace(job, config=config)


def with_stages(
    parallel: ParallelConfig, num_layers: int, pinned: Collection[str]
) -> ParallelConfig:
    """``parallel`` with other numbers of layers in the first and last stage where it needs them."""
    names = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
    if any(name in pinned for name in names):
        return parallel
    first, last = stage_ends(num_layers, parallel.pipeline_model_parallel_size)
    return dataclasses.replace(
        parallel,
        num_layers_in_first_pipeline_stage=first,
        num_layers_in_last_pipeline_stage=last,
    )


def stage_ends(num_layers: int, stages: int) -> tuple[int, int]:
    """Layers of the first and the last stage, (0, 0) where all have as many.

    ``(126, 16) -> (7, 7)``: the 14 between have 8. The longest stage is as short as can be; of
    two ends the last, which has the output layer and the loss too, is not the longer one.
    """
    if num_layers % stages == 0:
        return 0, 0
    if stages == 2:
        return -(-num_layers // 2), num_layers // 2
    best: tuple[int, int, int] | None = None
    for middle in (num_layers // stages, -(-num_layers // stages)):
        ends = num_layers - (stages - 2) * middle
        if middle < 1 or ends < 2:
            continue
        first = -(-ends // 2)
        option = (max(middle, first), first, ends - first)
        best = min(best, option) if best else option
    return best[1:] if best else (0, 0)


def nearest_rule(job: Job) -> str | None:
    """The rule that a layout breaks, None where it can run if the memory is there."""
    try:
        job.check()
    except InputError as error:
        return str(error)
    return None


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


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
