"""What to say of a job without a layout: the nearest, what it lacks, and changes that work."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from megatron_ultralong.config.run import MemoryConfig
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.plan.estimate import Estimate, layout_text
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.host_memory import NODE_SHARE
from megatron_ultralong.plan.job import GIB, Job
from megatron_ultralong.plan.optimizer_memory import least_memory
from megatron_ultralong.plan.options import MOST_GPUS
from megatron_ultralong.plan.search import LAYOUT_FLAGS, SAME_TIME, Found, broken_rule, search
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.sequence.documents import causal_area

SHORTEST_ROW = 8192


class Change(NamedTuple):
    """What to type, and the job that it makes."""

    kind: str
    """Of one kind one change that works is enough."""
    words: str
    job: Job


def changes(job: Job, hardware: Hardware) -> Iterator[Change]:
    """Changes to try, kind by kind, where no layout of ``job`` was found."""
    typed = [name for name in LAYOUT_FLAGS if name in job.pinned]
    for names in [[name] for name in typed] + ([typed] if len(typed) > 1 else []):
        words = "without " + ", ".join(map(flag_of, names))
        left = dataclasses.replace(job, pinned=job.pinned - set(names))
        yield Change("leave out", words, left)
    for name, value in _memory_flags(job.config):
        words = flag_of(name) if value is True else f"{flag_of(name)} {value}"
        yield Change("flag", words, job.with_flags(**{name: value}))
    for rows in _batches(job):
        words = f"--global-batch-size {rows}"
        yield Change("batch", words, job.with_flags(global_batch_size=rows))
    if not job.config.data.data_path and job.documents is None:  # of prepared rows it is fixed
        for length in _lengths(job):
            # Rows of one document.
            row = dataclasses.replace(job, mean_area=causal_area([0, length]))
            yield Change("row", f"--seq-length {length}", row.with_flags(seq_length=length))
    counts = {"fewer GPUs": _fewer, "more GPUs": _more}
    for kind, options in counts.items():
        for count in options(job.num_gpus, hardware.gpus_per_node):
            yield Change(kind, f"--gpus {count}", dataclasses.replace(job, num_gpus=count))


def _memory_flags(config: TrainingConfig) -> Iterator[tuple[str, Any]]:
    default, optimizer = MemoryConfig(), config.optimizer
    for name in ("loss_tile_size", "sequence_tile_size"):
        usual = getattr(default, name)
        if not 0 < getattr(config.memory, name) <= usual:
            yield name, usual
    is_plain = not optimizer.optimizer_cpu_offload and not optimizer.use_precision_aware_optimizer
    if config.precision == "bf16" and is_plain:
        yield "optimizer_cpu_offload", True


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


def flag_of(name: str) -> str:
    """``loss_tile_size -> --loss-tile-size``."""
    return "--" + name.replace("_", "-")


MOST_NAMED = 3
"""Changes that a message names."""
WORTH = 0.05
"""Of a step's time: below it no change is looked for."""
NEARLY = 0.95
"""Of a row's length: a change for speed does not make rows shorter."""


def best(job: Job, hardware: Hardware) -> Found:
    """As :func:`search`, of which at least one layout fits.

    Raises:
        InputError: none does; with the one that comes nearest, what it lacks, and the smallest
            changes that give a layout, each of them planned.
    """
    found = search(job, hardware)
    if found.feasible:
        return found
    way = _ways(_working_changes(job, hardware))
    if found.refused:
        nearest = found.refused[0]
        raise InputError(
            f"none of {counted(len(found.refused), 'layout')} of {counted(job.num_gpus, 'GPU')} "
            "fits; the nearest: "
            f"{layout_text(nearest.job)} {nearest.lack}; {way}"
        )
    # The rule that most layouts break; the others are as true.
    rules = max(found.rules, key=lambda rule: found.rules[rule], default="") or (
        f"they do not divide by the sizes given ({_sizes(job)})"
    )
    raise InputError(f"no layout of {counted(job.num_gpus, 'GPU')} is possible: {rules}; {way}")


def check_given(job: Job, hardware: Hardware) -> Estimate:
    """The estimate of a layout that is given.

    Raises:
        InputError: it breaks a rule or does not fit, with what it lacks and changes that work.
    """
    job.check()
    estimate = Estimate(job, hardware)
    if estimate.refusal is None:
        return estimate
    text = f"{layout_text(job)} does not fit: it {estimate.lack}"
    named = _change_of_layout(job, hardware)
    if named is None:
        try:
            free = dataclasses.replace(job, pinned=frozenset())
            named = "without --no-search", best(free, hardware).chosen
        except InputError as error:
            raise InputError(f"{text}; {error}") from None
    raise InputError(f"{text}; {_ways([named])}")


def _working_changes(job: Job, hardware: Hardware) -> Iterator[tuple[str, Estimate]]:
    """Changes that give a layout, one of each kind, and the layout; every one has been planned."""
    done = set()
    for change in changes(job, hardware):
        if change.kind not in done and (estimate := _tried(change.job, hardware)):
            done.add(change.kind)
            yield change.words, estimate


def faster_changes(job: Job, hardware: Hardware, chosen: Estimate) -> list[str]:
    """Batches and rows that these GPUs share better, a sentence for the best of each.

    Only where the layout found waits: replicas that the batch does not divide into leave pipelines.
    """
    if chosen.time.bubble < WORTH * chosen.time.total:
        return []
    chosen_rate = chosen.tokens_per_second_per_gpu
    best_of: dict[str, tuple[float, str]] = {}
    for change in changes(job, hardware):
        # For speed alone a row is not cut by much.
        is_near = change.job.seq_length >= NEARLY * job.seq_length
        if change.kind not in ("batch", "row") or not is_near:
            continue
        found = _tried(change.job, hardware)
        if found is None:
            continue
        gain = found.tokens_per_second_per_gpu / chosen_rate - 1
        # The nearest come first: one further away has to be better than that.
        if gain > best_of.get(change.kind, (WORTH, ""))[0] + SAME_TIME:
            text = (
                f"faster by {gain:.0%} a token: `{change.words}` ({layout_text(found.job)}, "
                f"{found.time.total:,.1f} s a step)"
            )
            best_of[change.kind] = gain, text
    return [text for _, text in best_of.values()]


def faster_exchange(job: Job, hardware: Hardware, chosen: Estimate) -> list[str]:
    """Another way for the ranks of a row to exchange what they need, as a sentence."""
    cp = chosen.job.parallel.context_parallel_size
    if cp == 1 or "cp_comm_type" in job.pinned:
        return []
    levels = [(n, cp // n) for n in range(2, cp) if cp % n == 0]
    ways: list[tuple[str, tuple[int, ...]]] = [("all_gather", ()), ("a2a", ())]
    ways += [("a2a+p2p", sizes) for sizes in levels]
    found = []
    for kind, sizes in ways:
        tried = chosen.job.with_flags(cp_comm_type=kind, hierarchical_context_parallel_sizes=sizes)
        if broken_rule(tried.check) is None:
            estimate = Estimate(tried, hardware)
            if estimate.refusal is None:
                found.append(estimate)
    best_found = min(found, key=lambda each: each.time.total, default=chosen)
    gain = chosen.time.total / best_found.time.total - 1
    if gain <= SAME_TIME:
        return []
    parallel = best_found.job.parallel
    words = f"--cp-comm-type {parallel.cp_comm_type}"
    if sizes := parallel.hierarchical_context_parallel_sizes:
        words += f" --hierarchical-context-parallel-sizes {' '.join(map(str, sizes))}"
    return [
        f"faster by {gain:.0%}: `{words}` ({best_found.time.total:,.1f} s a step, "
        f"{best_found.needed / GIB:.1f} GiB of a GPU)"
    ]


def savable_change(job: Job, hardware: Hardware, chosen: Estimate) -> list[str]:
    """A fraction of the optimizer on the host that leaves room for checkpoints, as a sentence."""
    if chosen.host.can_save or not job.config.optimizer.optimizer_cpu_offload:
        return []
    if "optimizer_offload_fraction" not in job.pinned:
        for fraction in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
            found = search(job.with_flags(optimizer_offload_fraction=fraction), hardware)
            if found.feasible and found.chosen.host.can_save:
                words, best_found = f"--optimizer-offload-fraction {fraction}", found.chosen
                return [
                    f"a checkpoint fits with `{words}` ({layout_text(best_found.job)}: "
                    f"{best_found.needed / GIB:.1f} GiB of a GPU, {best_found.time.total:,.1f} s "
                    "a step)"
                ]
    needed = (chosen.host.offloaded + chosen.host.checkpoint) / NODE_SHARE / GIB
    return [
        "no part of the optimizer on the host leaves room for a checkpoint: take more nodes, or "
        f"nodes of {needed:,.0f} GiB (--host-memory-gib)"
    ]


def _tried(job: Job, hardware: Hardware) -> Estimate | None:
    if least_memory(job) > hardware.memory_gib * GIB or broken_rule(job.check_flags):
        return None
    found = search(job, hardware)
    return found.chosen if found.feasible else None


def _change_of_layout(job: Job, hardware: Hardware) -> tuple[str, Estimate] | None:
    """The fewest flags that make a given layout fit."""
    full, offloaded = "--recompute-granularity full", "--offload-activations"
    host = "--optimizer-cpu-offload"
    flags = {
        full: ("recompute_granularity", "full"),
        offloaded: ("offload_activations", True),
        host: ("optimizer_cpu_offload", True),
    }
    for words in (
        *((full,), (offloaded,), (host,)),
        *((full, offloaded), (offloaded, host), (full, offloaded, host)),
    ):
        changed = job.with_flags(**dict(flags[word] for word in words))
        if changed == job or broken_rule(changed.check_flags) or broken_rule(changed.check):
            continue
        estimate = Estimate(changed, hardware)
        if estimate.refusal is None:
            return " ".join(words), estimate
    return None


def _ways(named: Iterable[tuple[str, Estimate]]) -> str:
    texts = []
    for words, estimate in itertools.islice(named, MOST_NAMED):
        host = f" and {estimate.host.offloaded / GIB:,.0f} of a node's memory"
        way = words if words.startswith("without ") else f"`{words}`"  # not to be typed
        texts.append(
            f"{way} ({layout_text(estimate.job)}: {estimate.needed / GIB:.1f} GiB of a GPU"
            f"{host if estimate.host.offloaded else ''}, {estimate.time.total:,.1f} s a step)"
        )
    if not texts:
        return "no single change was found that gives one"
    return "change: " + ", or ".join(texts)


def _sizes(job: Job) -> str:
    names = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    return ", ".join(
        f"{name} {getattr(job.parallel, name)}" for name in names if name in job.pinned
    )
