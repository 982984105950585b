"""How far a model can be extended on some GPUs: a layout for each length, and what to type."""

from collections.abc import Callable, Iterator, Sequence

from rich.table import Table

from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.plan import advice, given, report
from megatron_ultralong.plan.area import area_of
from megatron_ultralong.plan.estimate import Estimate, layout_text
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.job import GIB, Job
from megatron_ultralong.plan.options import PlanConfig
from megatron_ultralong.plan.search import Found, search
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.terminal import Console

LENGTHS = tuple(2**power for power in range(17, 23))
"""128K to 4M."""


def plans_by_length(
    command: PlanConfig,
    run_of: Callable[[int], TrainingConfig],
    model: ModelConfig,
    typed: frozenset[str],
) -> Iterator[tuple[Job, Found]]:
    """The job at each of :data:`LENGTHS`, and its layouts.

    Raises:
        InputError: a flag is out of its range, or breaks a rule.
    """
    hardware = command.find_hardware()
    for config in map(run_of, LENGTHS):
        area = area_of(config, command.mean_document_length)
        job = Job(model, config, command.gpus, area.pairs, area.documents, typed)
        job.check_flags()
        yield job, search(job, hardware)


def show_lengths(
    console: Console,
    found: Sequence[tuple[Job, Found]],
    hardware: Hardware,
    title: str,
    words: str,
    first: str,
) -> None:
    """Print the layouts by length, and the command of the longest, behind ``first``.

    Raises:
        InputError: none fits, with the changes that make the shortest fit.
    """
    fitting = [each.chosen for _, each in found if each.feasible]
    if not fitting:
        shortest = found[0][0]
        try:
            advice.best(shortest, hardware)
        except InputError as error:
            text = f"{title}: rows of {shortest.seq_length:,} do not fit: {error}"
            raise InputError(text) from error
    columns = map(given.figure, ("GiB", "host GiB a node", "step, s", "MFU", "hours"))
    table = Table("row", "layout", *columns, title=title, title_justify="left")
    for job, each in found:
        table.add_row(short_length(job.seq_length), *_cells(each))
    console.print(table)
    longest = fitting[-1]
    for line in longest.job.config.rope.beyond_paper:
        console.print(line, soft_wrap=True, highlight=False)
    console.print(
        f"the longest, {short_length(longest.job.seq_length)} (--seq-length plans another):",
        soft_wrap=True,
        highlight=False,
    )
    for line in filter(None, (first, command_text(longest, words))):
        console.print(f"  {line}", soft_wrap=True, highlight=False, style="cyan")


def _cells(found: Found) -> tuple[str, ...]:
    """The layout to take and its figures, or why none fits."""
    if not found.feasible:
        nearest = [f"{layout_text(each.job)} {each.lack}" for each in found.refused[:1]]
        why = next(iter([*nearest, *found.rules]), "no layout divides it")
        return f"does not fit: {why}", "", "", "", "", ""
    its = found.chosen
    return (
        layout_text(its.job),
        f"{its.needed / GIB:.1f}",
        f"{its.host.offloaded / GIB:,.0f}" if its.host.offloaded else "-",
        given.short_seconds(its.time.total),
        f"{its.mfu:.0%}",
        f"{its.hours(its.job.config.train_iters * its.job.tokens_per_iteration):,.1f}",
    )


def short_length(length: int) -> str:
    """``1048576 -> 1M``, ``131072 -> 128K``."""
    for letter, size in (("M", 2**20), ("K", 2**10)):
        if length % size == 0:
            return f"{length // size}{letter}"
    return f"{length}"


def command_text(estimate: Estimate, words: str) -> str:
    """The command that starts a layout: ``words`` are the verb, its recipe and its folders."""
    job, node = estimate.job, estimate.hardware.gpus_per_node
    flags = f"--seq-length {short_length(job.seq_length)} {report.layout_flags(job)}"
    if job.num_gpus <= node:
        return f"ultralong {words} {flags} --ranks {job.num_gpus}"
    return (
        f"torchrun --nnodes {estimate.num_nodes} --nproc-per-node {node} --rdzv-backend c10d "
        f"--rdzv-endpoint HEAD:29500 -m megatron_ultralong {words} {flags}"
    )
