"""``ultralong plan``: what a run takes, and the layout to give it."""

import json

from megatron_ultralong.config.training import SftConfig, TrainingConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.plan import advice
from megatron_ultralong.plan.area import Rows, area_of
from megatron_ultralong.plan.estimate import Estimate
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.job import Job
from megatron_ultralong.plan.options import PlanConfig
from megatron_ultralong.plan.report import Plan, show
from megatron_ultralong.plan.search import Found, broken_rule
from megatron_ultralong.plan.values import as_values, save_memory_picture
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
            write_aside(command.json, json.dumps(as_values(plan), indent=2) + "\n")
        if command.png is not None:
            save_memory_picture(command.png, shown)
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
