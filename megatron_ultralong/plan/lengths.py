"""How far a model can be extended on some GPUs: a layout for each length, and what to type."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rich.table import Table

from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.plan.advice import best
from megatron_ultralong.plan.area import area_of
from megatron_ultralong.plan.estimate import Estimate, layout_text
from megatron_ultralong.plan.given import figure, short_seconds
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.job import GIB, Job
from megatron_ultralong.plan.options import PlanConfig
from megatron_ultralong.plan.report import layout_flags
from megatron_ultralong.plan.search import search
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.terminal import Console

LENGTHS = tuple(2**power for power in range(17, 23))
"""128K to 4M."""


class AtLength(NamedTuple):
    """What was found for rows of one length."""

    seq_length: int
    chosen: Estimate | None
    """None where no layout fits."""
    why: str
    """Why none does."""
    tokens: float
    """Of the run."""
    job: Job


def plans_by_length(
    command: PlanConfig,
    run_of: Callable[[int], TrainingConfig],
    model: ModelConfig,
    typed: frozenset[str],
) -> Iterator[AtLength]:
    """The layout to take at each of :data:`LENGTHS`.

    Raises:
        InputError: a flag is out of its range, or breaks a rule.
    """
    hardware = command.find_hardware()
    for length in LENGTHS:
        config = run_of(length)
        area = area_of(config, command.mean_document_length)
        job = Job(model, config, command.gpus, area.pairs, area.documents, typed)
        job.check_flags()
        found = search(job, hardware)
        tokens = float(config.train_iters * job.tokens_per_iteration)
        why = ""
        if not found.feasible:
            nearest = found.refused[:1]
            why = f"{layout_text(nearest[0][0].job)} {nearest[0][0].lack}" if nearest else ""
            why = why or next(iter(found.rules), "no layout divides it")
        yield AtLength(length, found.chosen if found.feasible else None, why, tokens, job)


def show_lengths(
    console: Console,
    found: Sequence[AtLength],
    hardware: Hardware,
    title: str,
    words: str,
    first: str = "",
) -> None:
    """Print the layouts by length, and the command of the longest, behind ``first``.

    Raises:
        InputError: none fits, with the changes that make the shortest fit.
    """
    fitting = [each for each in found if each.chosen is not None]
    if not fitting:
        try:
            best(found[0].job, hardware)
        except InputError as error:
            text = f"{title}: rows of {found[0].seq_length:,} do not fit: {error}"
            raise InputError(text) from error
    columns = map(figure, ("GiB", "host GiB a node", "step, s", "MFU", "hours"))
    table = Table("row", "layout", *columns, title=title, title_justify="left")
    for each in found:
        table.add_row(*cells(each))
    console.print(table)
    far = [each.job.config.rope.far for each in fitting]
    for line in next(filter(None, reversed(far)), ()):  # of the longest
        console.print(line, soft_wrap=True, highlight=False)
    longest = fitting[-1]
    assert longest.chosen is not None
    console.print(
        f"the longest, {short_length(longest.seq_length)} (--seq-length plans another):",
        soft_wrap=True,
        highlight=False,
    )
    for line in filter(None, (first, command_text(longest.chosen, words))):
        console.print(f"  {line}", soft_wrap=True, highlight=False, style="cyan")


def cells(each: AtLength) -> tuple[str, ...]:
    """A row of the table."""
    if each.chosen is None:
        return short_length(each.seq_length), f"does not fit: {each.why}", "", "", "", "", ""
    its = each.chosen
    return (
        short_length(each.seq_length),
        layout_text(its.job),
        f"{its.needed / GIB:.1f}",
        f"{its.host.offloaded / GIB:,.0f}" if its.host.offloaded else "-",
        short_seconds(its.time.total),
        f"{its.mfu:.0%}",
        f"{its.hours(each.tokens):,.1f}",
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
    flags = f"--seq-length {short_length(job.seq_length)} {layout_flags(job)}"
    if job.num_gpus <= node:
        return f"ultralong {words} {flags} --ranks {job.num_gpus}"
    return (
        f"torchrun --nnodes {estimate.num_nodes} --nproc-per-node {node} --rdzv-backend c10d "
        f"--rdzv-endpoint HEAD:29500 -m megatron_ultralong {words} {flags}"
    )
