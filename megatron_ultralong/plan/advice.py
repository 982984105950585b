"""What to say of a job without a layout: the nearest, what it lacks, and changes that work."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from megatron_ultralong.plan.changes import Change, changes
from megatron_ultralong.plan.estimate import Estimate, layout_text
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.host_memory import NODE_SHARE
from megatron_ultralong.plan.job import GIB, Job
from megatron_ultralong.plan.optimizer_memory import least_memory
from megatron_ultralong.plan.search import SAME_TIME, Found, nearest_rule, search
from megatron_ultralong.program.errors import InputError

MOST_NAMED = 3
"""Changes that a message names."""
WORTH = 0.05
"""Of a step's time: below it no change is looked for."""
NEARLY = 0.95
"""Of a row's length: a change for speed does not make rows shorter."""


def best(
    job: Job,
    hardware: Hardware,
    pinned: Collection[str] = (),
    *,
    rows_are_fixed: bool = False,
) -> Found:
    """As :func:`search`, of which at least one layout fits.

    Raises:
        InputError: none does; with the one that comes nearest, what it lacks, and the smallest
            changes that give a layout, each of them planned.
    """
    found = search(job, hardware, pinned)
    if found.feasible:
        return found
    way = _ways(working_changes(job, hardware, pinned, rows_are_fixed=rows_are_fixed))
    if found.refused:
        nearest = found.refused[0][0]
        raise InputError(
            f"none of {len(found.refused)} layouts of {job.num_gpus} GPUs fits; the nearest: "
            f"{layout_text(nearest.job)} {nearest.lack}; {way}"
        )
    # The rule that most layouts break; the others are as true.
    rules = max(found.rules, key=lambda rule: found.rules[rule], default="") or (
        f"they do not divide by the sizes given ({_sizes(job, pinned)})"
    )
    raise InputError(f"no layout of {job.num_gpus} GPUs is possible: {rules}; {way}")


def check_given(job: Job, hardware: Hardware, *, rows_are_fixed: bool) -> Estimate:
    """The estimate of a layout that is given.

    Raises:
        InputError: it breaks a rule or does not fit, with what it lacks and changes that work.
    """
    job.check()
    estimate = Estimate(job, hardware)
    if estimate.refusal is None:
        return estimate
    text = f"{layout_text(job)} does not fit: it {estimate.lack}"
    named = list(_changes_of_layout(job, hardware))
    if not named:
        try:
            chosen = best(job, hardware, rows_are_fixed=rows_are_fixed).chosen
        except InputError as error:
            raise InputError(f"{text}; {error}") from None
        named = [("without --no-search", chosen)]
    raise InputError(f"{text}; {_ways(iter(named))}")


def working_changes(
    job: Job, hardware: Hardware, pinned: Collection[str], *, rows_are_fixed: bool
) -> Iterator[tuple[str, Estimate]]:
    """Changes that give a layout, one of each kind, and the layout; every one has been planned."""
    done = set()
    for change in changes(job, hardware, pinned, rows_are_fixed=rows_are_fixed):
        if change.kind in done:
            continue
        estimate = _tried(change, hardware)
        if estimate is not None:
            done.add(change.kind)
            yield change.words, estimate


def faster_changes(
    job: Job,
    hardware: Hardware,
    pinned: Collection[str],
    chosen: Estimate,
    *,
    rows_are_fixed: bool,
) -> list[str]:
    """Batches and rows that these GPUs share better, a sentence for the best of each.

    Only where the layout found waits: replicas that the batch does not divide into leave pipelines.
    """
    if chosen.time.bubble < WORTH * chosen.time.total:
        return []
    ours = chosen.tokens_per_second_per_gpu
    best_of: dict[str, tuple[float, str]] = {}
    for change in changes(job, hardware, pinned, rows_are_fixed=rows_are_fixed):
        # For speed alone a row is not cut by much.
        is_near = change.job.seq_length >= NEARLY * job.seq_length
        if change.kind not in ("batch", "row") or not is_near:
            continue
        found = _tried(change, hardware)
        if found is None:
            continue
        gain = found.tokens_per_second_per_gpu / ours - 1
        # The nearest come first: one further away has to be better than that.
        if gain > best_of.get(change.kind, (WORTH, ""))[0] + SAME_TIME:
            text = (
                f"faster by {gain:.0%} a token: `{change.words}` ({layout_text(found.job)}, "
                f"{found.time.total:,.1f} s a step)"
            )
            best_of[change.kind] = gain, text
    return [text for _, text in best_of.values()]


def savable_change(
    job: Job, hardware: Hardware, pinned: Collection[str], chosen: Estimate
) -> list[str]:
    """A fraction of the optimizer on the host that leaves room for checkpoints, as a sentence."""
    optimizer = job.config.optimizer
    if chosen.host.can_save or not optimizer.optimizer_cpu_offload:
        return []
    if "optimizer_offload_fraction" not in pinned:
        for fraction in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
            changed = dataclasses.replace(optimizer, optimizer_offload_fraction=fraction)
            config = dataclasses.replace(job.config, optimizer=changed)
            found = search(dataclasses.replace(job, config=config), hardware, pinned)
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


def _tried(change: Change, hardware: Hardware) -> Estimate | None:
    if least_memory(change.job) > hardware.memory_gib * GIB:
        return None
    try:
        change.job.check_flags()
    except InputError:
        return None
    found = search(change.job, hardware, change.pinned)
    return found.chosen if found.feasible else None


def _changes_of_layout(job: Job, hardware: Hardware) -> Iterator[tuple[str, Estimate]]:
    """Flags that make a given layout fit, fewest first; the first that do."""
    memory, optimizer = job.memory, job.config.optimizer
    full = {"recompute_granularity": "full"}
    offloaded = {"offload_activations": True}
    for words, fields, host in (
        ("--recompute-granularity full", full, False),
        ("--offload-activations", offloaded, False),
        ("--optimizer-cpu-offload", {}, True),
        ("--recompute-granularity full --offload-activations", full | offloaded, False),
        ("--offload-activations --optimizer-cpu-offload", offloaded, True),
        (
            "--recompute-granularity full --offload-activations --optimizer-cpu-offload",
            full | offloaded,
            True,
        ),
    ):
        config = dataclasses.replace(
            job.config,
            memory=dataclasses.replace(memory, **fields),
            optimizer=dataclasses.replace(
                optimizer, optimizer_cpu_offload=host or optimizer.optimizer_cpu_offload
            ),
        )
        changed = dataclasses.replace(job, config=config)
        try:
            changed.check_flags()
        except InputError:
            continue
        if config != job.config and nearest_rule(changed) is None:
            estimate = Estimate(changed, hardware)
            if estimate.refusal is None:
                yield words, estimate
                return


def _ways(named: Iterator[tuple[str, Estimate]]) -> str:
    texts = []
    for words, estimate in named:
        host = f" and {estimate.host_per_node / GIB:,.0f} of a node's memory"
        texts.append(
            f"`{words}` ({layout_text(estimate.job)}: {estimate.needed / GIB:.1f} GiB of a GPU"
            f"{host if estimate.host_per_node else ''}, {estimate.time.total:,.1f} s a step)"
        )
        if len(texts) == MOST_NAMED:
            break
    if not texts:
        return "no single change was found that gives one"
    return "change: " + ", or ".join(texts)


def _sizes(job: Job, pinned: Collection[str]) -> str:
    names = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    found = [f"{name} {getattr(job.parallel, name)}" for name in names if name in pinned]
    return ", ".join(found)
