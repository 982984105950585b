"""``ultralong plan``: what a run takes, a layout for it, and how far a model can be extended."""

import json
from collections.abc import Callable, Iterator, Sequence

from rich.table import Table

from megatron_ultralong.config.training import SftConfig, TrainingConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.plan import advice, given, report
from megatron_ultralong.plan.area import Rows, area_of
from megatron_ultralong.plan.estimate import Estimate, layout_text
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.job import GIB, Job
from megatron_ultralong.plan.options import PlanConfig
from megatron_ultralong.plan.report import Plan, show
from megatron_ultralong.plan.search import Found, broken_rule, search
from megatron_ultralong.program.aside import write_aside
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.terminal import Console

WIDTH = 112
"""Columns of what is not printed to a terminal."""


def make_plan(
    command: PlanConfig,
    recipe: str,
    model: ModelConfig,
    model_name: str,
    typed: frozenset[str],
    rows: Rows | None,
) -> Plan:
    """The plan of what was asked for by flags of the fields ``typed``.

    Raises:
        InputError: nothing fits, or the input is bad.
    """
    hardware, config = command.find_hardware(), command.run
    if config.data.seq_length < 1:
        raise InputError("--seq-length is needed: tokens of a row, or a --data-path that has them")
    _check_fp8(config, hardware)
    area = area_of(config, command.mean_document_length, rows)
    job = Job(model, config, command.gpus, area.pairs, area.documents, typed)
    job.check_flags()
    found: Found | None = None
    hints: list[str] = []
    given: Estimate | None = None
    if command.search:
        found = advice.best(job, hardware)
        chosen = found.chosen
        hints = advice.savable_change(job, hardware, chosen)
        hints += advice.faster_changes(job, hardware, chosen)
        hints += advice.faster_exchange(job, hardware, chosen)
        given = None if broken_rule(job.check) else Estimate(job, hardware)
    else:
        chosen = advice.check_given(job, hardware)
    tokens, tokens_text = _train_tokens(command, job, rows)
    return Plan(
        *(recipe, model_name, area.text, tokens, chosen),
        *(found, given, hints, tokens_text),
    )


def tell_plan(command: PlanConfig, plan: Plan) -> None:
    """Print and write.

    Raises:
        InputError: a file cannot be written.
    """
    show(console(), plan, command.num_alternatives)
    shown = [plan.chosen]
    if plan.found:
        others = [each for each in plan.found.feasible if each is not plan.chosen]
        shown += others[: max(command.num_alternatives - 1, 0)]
    try:
        if command.json is not None:
            write_aside(command.json, json.dumps(report.as_values(plan), indent=2) + "\n")
        if command.png is not None:
            report.save_memory_picture(command.png, shown)
    except OSError as error:
        raise InputError(f"--json or --png cannot be written ({error}): name another") from error


def console() -> Console:
    """The terminal's width; a file or a pipe has none, and tables are read there, too."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _train_tokens(command: PlanConfig, job: Job, rows: Rows | None) -> tuple[float, str]:
    """Tokens of the run, and what they are counted by."""
    config, an_iteration = command.run, job.tokens_per_iteration
    if isinstance(config, SftConfig) and rows is not None:
        config = config.with_budget(config.data.seq_length)
        iterations = config.with_iterations(rows.num_rows).train_iters
        if not config.train_iters:
            passes = counted(f"{config.num_epochs:g}", "pass")
            return float(iterations * an_iteration), f", {passes} over the rows"
    if command.run.train_tokens:
        return command.run.train_tokens, ""
    if not config.train_iters:
        return float(an_iteration), ", one iteration"
    return float(config.train_iters * an_iteration), ""


def _check_fp8(config: TrainingConfig, hardware: Hardware) -> None:
    recipe = config.layers.fp8_recipe
    if config.layers.fp8_format == "none" or recipe in hardware.fp8_recipes:
        return
    options = ", ".join(hardware.fp8_recipes) or "none: use --fp8-format none"
    raise InputError(
        f"fp8_recipe {recipe!r} is not supported by {hardware.name}; it supports: {options}"
    )


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
