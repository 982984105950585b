"""The layouts of a job on so many GPUs, best first, and why others cannot run."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator

from megatron_ultralong.errors import InputError
from megatron_ultralong.plan.estimate import Estimate, layout_text
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.job import GIB, Job
from megatron_ultralong.run_config import RecomputeGranularity

SAME_TIME = 0.01
"""Steps that differ by less are ranked by whether they need the host, then by memory."""
MOST_GPUS = 16_384

_KINDS: tuple[tuple[RecomputeGranularity, bool], ...] = (
    ("keep_attention", False),
    ("full", False),
    ("keep_attention", True),
    ("full", True),
    ("none", False),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found."""

    feasible: list[Estimate]
    """Fastest first."""
    refused: list[tuple[Estimate, str]]
    """Layouts that do not fit, those that nearly do first, and why."""
    rules: dict[str, int]
    """Layouts that break a rule, by an example of its message."""


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
    for candidate in _candidates(job, hardware, pinned):
        try:
            candidate.check()
        except InputError as error:
            rule = str(error).split(" (")[0]
            examples.setdefault(rule, str(error))
            rules[examples[rule]] = rules.get(examples[rule], 0) + 1
            continue
        estimate = Estimate(candidate, hardware)
        why = estimate.refusal
        if why is None:
            feasible.append(estimate)
        else:
            refused.append((estimate, why))
    feasible.sort(key=_rank)
    refused.sort(key=lambda pair: _excess(pair[0]))
    return Found(feasible, refused, rules)


def best(job: Job, hardware: Hardware, pinned: Collection[str] = ()) -> Found:
    """As :func:`search`, of which at least one layout fits.

    Raises:
        InputError: none does; with the one that comes nearest, and the GPUs that would be enough.
    """
    found = search(job, hardware, pinned)
    if found.feasible:
        return found
    enough = _enough_gpus(job, hardware, pinned)
    way = f"; {enough} GPUs would be enough" if enough else ""
    if not found.refused:
        examples = "; ".join(found.rules) or "the sizes given do not divide the GPUs"
        raise InputError(f"no layout of {job.num_gpus} GPUs is possible: {examples}{way}")
    nearest = found.refused[0][0]
    try:
        nearest.check()
    except InputError as error:
        raise InputError(
            f"none of {len(found.refused)} layouts of {job.num_gpus} GPUs fits{way}; the nearest: "
            f"{error}"
        ) from None
    raise AssertionError(f"{layout_text(nearest.job)} was refused and fits")


def _excess(estimate: Estimate) -> float:
    """Largest share by which something is too much."""
    return max(
        estimate.needed / estimate.available,
        estimate.host_per_node / max(estimate.host_available, GIB),
    )


def _enough_gpus(job: Job, hardware: Hardware, pinned: Collection[str]) -> int | None:
    """The smallest power of two times these GPUs on which a layout fits."""
    count = 2 * job.num_gpus
    while count <= MOST_GPUS:
        if search(dataclasses.replace(job, num_gpus=count), hardware, pinned).feasible:
            return count
        count *= 2
    return None


def _rank(estimate: Estimate) -> tuple[int, bool, int]:
    bucket = round(math.log(estimate.time.total) / SAME_TIME)
    return bucket, estimate.host_per_node > 0, estimate.needed


def _candidates(job: Job, hardware: Hardware, pinned: Collection[str]) -> Iterator[Job]:
    parallel, memory = job.parallel, job.memory
    tps = _sizes(
        pinned,
        "tensor_model_parallel_size",
        parallel.tensor_model_parallel_size,
        [n for n in _divisors(job.num_gpus) if n <= hardware.gpus_per_node],
    )
    pps = _sizes(
        pinned,
        "pipeline_model_parallel_size",
        parallel.pipeline_model_parallel_size,
        [n for n in _divisors(job.num_gpus) if job.model.num_layers % n == 0 and n <= 16],
    )
    cps = _sizes(
        pinned,
        "context_parallel_size",
        parallel.context_parallel_size,
        _divisors(job.num_gpus),
    )
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
        for kind, offload in kinds:
            kept = dataclasses.replace(
                memory, recompute_granularity=kind, offload_activations=offload
            )
            config = dataclasses.replace(job.config, parallel=split, memory=kept)
            yield dataclasses.replace(job, config=config)


def _sizes(pinned: Collection[str], name: str, value: int, options: list[int]) -> list[int]:
    return [value] if name in pinned else options


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
