"""Single changes to what was asked for, the smallest first, each of which may give a layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from megatron_ultralong.config.run import MemoryConfig
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.job import Job
from megatron_ultralong.plan.search import LAYOUT_FLAGS

MOST_GPUS = 16_384
SHORTEST_ROW = 8192


@dataclasses.dataclass(frozen=True)
class Change:
    """What to type, and the job that it makes."""

    kind: str
    """Of one kind one change that works is enough."""
    words: str
    job: Job
    pinned: frozenset[str]


def changes(
    job: Job, hardware: Hardware, pinned: Collection[str], *, rows_are_fixed: bool
) -> Iterator[Change]:
    """Changes to try, kind by kind.

    Args:
        job: that no layout was found for.
        hardware: of every GPU.
        pinned: fields of the configuration that were typed.
        rows_are_fixed: whether rows were prepared, so that their length cannot change.
    """
    kept = frozenset(pinned)
    typed = [name for name in LAYOUT_FLAGS if name in kept]
    for name in typed:
        yield Change("leave out", f"without {_flag(name)}", job, kept - {name})
    if len(typed) > 1:
        words = "without " + ", ".join(map(_flag, typed))
        yield Change("leave out", words, job, kept - set(typed))
    for words, config in _memory_flags(job.config):
        yield Change("flag", words, dataclasses.replace(job, config=config), kept)
    for rows in _batches(job):
        config = dataclasses.replace(job.config, global_batch_size=rows)
        changed = dataclasses.replace(job, config=config)
        yield Change("batch", f"--global-batch-size {rows}", changed, kept)
    if not rows_are_fixed and job.documents is None:
        for length in _lengths(job):
            yield Change("row", f"--seq-length {length}", with_length(job, length), kept)
    node = hardware.gpus_per_node
    for count in _fewer(job.num_gpus, node):
        fewer = dataclasses.replace(job, num_gpus=count)
        yield Change("fewer GPUs", f"--gpus {count}", fewer, kept)
    for count in _more(job.num_gpus, node):
        more = dataclasses.replace(job, num_gpus=count)
        yield Change("more GPUs", f"--gpus {count}", more, kept)


def with_length(job: Job, length: int) -> Job:
    """``job`` with rows of one document and another length."""
    data = dataclasses.replace(job.config.data, seq_length=length)
    config = dataclasses.replace(job.config, data=data)
    return dataclasses.replace(job, config=config, mean_area=length * (length + 1) / 2)


def _memory_flags(config: TrainingConfig) -> Iterator[tuple[str, TrainingConfig]]:
    default, memory, optimizer = MemoryConfig(), config.memory, config.optimizer
    for name in ("loss_tile_size", "sequence_tile_size"):
        value, usual = getattr(memory, name), getattr(default, name)
        if not 0 < value <= usual:
            tiled = dataclasses.replace(memory, **{name: usual})
            yield f"{_flag(name)} {usual}", dataclasses.replace(config, memory=tiled)
    is_plain = not optimizer.optimizer_cpu_offload and not optimizer.use_precision_aware_optimizer
    if config.precision == "bf16" and is_plain:
        offloaded = dataclasses.replace(optimizer, optimizer_cpu_offload=True)
        yield "--optimizer-cpu-offload", dataclasses.replace(config, optimizer=offloaded)


def _batches(job: Job) -> list[int]:
    """Rows of an iteration that replicas of these GPUs divide, the nearest first."""
    rows = job.config.global_batch_size
    options = set()
    for replicas in range(1, min(job.num_gpus, 2 * rows) + 1):
        if job.num_gpus % replicas == 0:
            unit = replicas * job.config.micro_batch_size
            options |= {rows // unit * unit, -(-rows // unit) * unit}
    options -= {0, rows}
    return sorted(options, key=lambda option: (abs(option - rows), option))[:6]


def _lengths(job: Job) -> Iterator[int]:
    """Rows that all GPUs divide; then shorter ones by halves."""
    length, unit = job.seq_length, 2 * job.num_gpus
    below = length // unit * unit
    if SHORTEST_ROW <= below < length:
        yield below
    shorter = 1 << (length - 1).bit_length() - 1
    while shorter >= SHORTEST_ROW:
        yield shorter
        shorter //= 2


def _fewer(num_gpus: int, node: int) -> list[int]:
    """Whole nodes of these GPUs, or powers of two of one node's: the most first."""
    if num_gpus > node:
        options = [node * count for count in _round_numbers(num_gpus // node)]
    else:
        options = [1 << power for power in range(num_gpus.bit_length())]
    return sorted((count for count in options if count < num_gpus), reverse=True)[:4]


def _more(num_gpus: int, node: int) -> list[int]:
    options = [node * count for count in _round_numbers(MOST_GPUS // node)]
    if num_gpus < node:
        options += [1 << power for power in range(node.bit_length())]
    return sorted({count for count in options if count > num_gpus})


def _round_numbers(most: int) -> list[int]:
    """Powers of two, and three times them."""
    powers = [1 << power for power in range(most.bit_length())]
    return [count for count in (*powers, *(3 * each for each in powers)) if count <= most]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
