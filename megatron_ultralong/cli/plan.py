"""What ``ultralong plan`` reads: recipes, the shape of a model, the documents of rows."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ultralong.cli import start_of_run
from megatron_ultralong.cli.extension import Source, derived
from megatron_ultralong.cli.verbs import load
from megatron_ultralong.config.command_line import parse
from megatron_ultralong.config.plain_values import flat_fields, with_fields
from megatron_ultralong.config.recipes import EXTENSIONS, RECIPES
from megatron_ultralong.config.training import PretrainConfig, SftConfig, TrainingConfig
from megatron_ultralong.model import shape, yarn
from megatron_ultralong.plan.hardware import HARDWARE
from megatron_ultralong.plan.options import PlanConfig
from megatron_ultralong.program.ending import PROGRAM
from megatron_ultralong.program.errors import InputError, missing
from megatron_ultralong.program.inner_folders import one_inside

if TYPE_CHECKING:
    from megatron_ultralong.data.rows.packed import PackedRows
    from megatron_ultralong.plan.area import Rows
    from megatron_ultralong.plan.report import Plan

MOST_ROWS = 1000
"""Whose documents are read for a mean."""
SFT_ROW = 8192
"""Tokens of a row of conversations as ``prepare chat`` packs them by default."""


def plan(words: Sequence[str]) -> Plan | None:
    """Plan what the words of a command line ask for: a recipe or ``--config FILE``, and flags.

    Without a recipe it is ``extend``; without a length all are planned that are asked for often,
    and nothing is returned.

    Raises:
        InputError: bad input, or nothing fits.
    """
    if words[0].startswith("-") and words[0] != "--config":
        words = ["extend", *words]  # the recipe that fits any model and length
    run, rest = start_of_run.begin("plan", list(words), RECIPES, TrainingConfig)
    _check_gpu_name(rest)
    command = _parse(rest, run)
    typed = start_of_run.fields_typed(rest)
    if words[0] in EXTENSIONS:
        its = command.run
        assert isinstance(its, PretrainConfig)
        if not its.data.seq_length and not its.data.data_path:
            _plan_lengths(command, words[0], rest)
            return None
        run, _ = derived(words[0], its, typed, command.gpus, source_of(command, words[0]))
        command = _parse(rest, run)
    elif words[0] != "--config":  # as `pretrain` takes it
        total = load("training.early_checks:planned_iterations")(command.run)
        shorter, _ = start_of_run.with_shorter_warm_up(words, command.run, total)
        command = dataclasses.replace(command, run=shorter)
    from megatron_ultralong.plan.command import command_text, make_plan, tell_plan

    with start_of_run.says_who_set(words, run):
        command, rows = with_rows(command)
        recipe = words[1] if words[0] == "--config" else words[0]
        source = source_of(command, recipe)
    # a search changes what the recipe set
    told = contextlib.nullcontext() if command.search else start_of_run.says_who_set(words, run)
    with told:
        found = make_plan(command, recipe, source.model, source.name, typed, rows)
        start = start_words(command, recipe, rest, is_file=words[0] == "--config")
        text, config, refusal = command_text(found.chosen, start), found.chosen.job.config, ""
        printed = [*words[: 2 if words[0] == "--config" else 1], *shlex.split(text)]
        try:
            with start_of_run.says_who_set(printed, run):
                config.check_run(source.model, source.scaling, command.gpus, longest_of(config))
        except InputError as error:
            refusal = str(error)
        first = import_command(command)
        found = dataclasses.replace(found, first=first, command=text, refusal=refusal)
        tell_plan(command, found)
        return found


def _parse(words: Sequence[str], run: TrainingConfig) -> PlanConfig:
    command: PlanConfig = parse(PlanConfig, f"{PROGRAM} plan", words, PlanConfig(run))
    return command


def _plan_lengths(command: PlanConfig, recipe: str, words: Sequence[str]) -> None:
    """Plan a recipe of any length at each length that is asked for often."""
    from megatron_ultralong.plan.command import console, plans_by_length, show_lengths

    if command.json or command.png or not command.search:
        raise InputError(
            "--json, --png and --no-search are about one plan: give its --seq-length, such as "
            "--seq-length 512K"
        )
    source = source_of(command, recipe)
    typed = start_of_run.fields_typed(words)

    def run_of(length: int) -> TrainingConfig:
        its = with_fields(command.run, seq_length=length)
        assert isinstance(its, PretrainConfig)
        run, _ = derived(recipe, its, typed, command.gpus, source)
        return _parse([*words, "--seq-length", str(length)], run).run

    title = f"{source.name} by {recipe} on {command.gpus} x {command.find_hardware().name}"
    found = list(plans_by_length(command, run_of, source.model, typed))
    start = start_words(command, recipe, words)
    show_lengths(console(), found, command.find_hardware(), title, start, import_command(command))


_SAID = frozenset(
    (
        *("load", "save", "data_path", "seq_length"),
        *("cp_comm_type", "hierarchical_context_parallel_sizes"),
    )
)
"""Fields whose flags the printed command has by itself, beside those of the layout."""


def start_words(
    command: PlanConfig, recipe: str, words: Sequence[str], *, is_file: bool = False
) -> str:
    """The beginning of the command that trains what is planned, with its flags of the run.

    ``recipe`` is its name, or the file behind ``--config`` (``is_file``), which may name the
    folders itself; ``words`` are the flags.
    """
    from megatron_ultralong.plan.search import LAYOUT_FLAGS

    run, said = command.run, _SAID.union(LAYOUT_FLAGS)
    rows = "chats" if isinstance(run, SftConfig) else "rows"
    found = [run.verb, "--config" if is_file else "", shlex.quote(recipe)]
    typed = start_of_run.fields_typed(words)
    for field, value, usual in (
        ("load", load_folder(command), BASE),
        ("data_path", run.data.data_path, rows),
        ("save", run.save, "run"),
    ):
        its = run.data.data_path if field == "data_path" else getattr(run, field)
        if not (is_file and value and value == its and field not in typed):
            found.append(f"--{field.replace('_', '-')} {shlex.quote(value or usual)}")
    fields, is_kept = frozenset(name.split(".")[-1] for name in flat_fields(run)) - said, False
    for word in words:
        if word.startswith("--"):
            is_kept = bool(start_of_run.fields_typed([word]) & fields)
        if is_kept:
            found.append(shlex.quote(word))
    return " ".join(filter(None, found))


BASE = "base"
"""The checkpoint that printed commands start from, where there is none yet."""


def load_folder(command: PlanConfig) -> str:
    """The ``--load`` of the run: that of the flags, unless ``pretrain`` would refuse it.

    A Hugging Face folder and a model's name are planned from, but trained from after an import.
    """
    load = command.run.load
    is_name = not command.model and not Path(load).exists()
    return BASE if not load or is_name or _is_hugging_face(load) else load


def import_command(command: PlanConfig) -> str:
    """What makes :func:`load_folder` of a Hugging Face folder; empty where it needs nothing."""
    from megatron_ultralong.checkpoint.disk.metadata import FILE_NAME

    target, load = load_folder(command), command.run.load
    source = load if _is_hugging_face(load) else command.model or ""
    # a checkpoint that nobody names, in a folder "base", may be of any model
    is_made = target == load and (Path(load) / FILE_NAME).is_file()
    if is_made or not _is_hugging_face(source):
        return ""
    return f"{PROGRAM} convert import {shlex.quote(source)} {shlex.quote(target)}"


def _is_hugging_face(name: str) -> bool:
    """Whether it is a folder of Hugging Face's, and no checkpoint of this project."""
    from megatron_ultralong.checkpoint.disk.metadata import FILE_NAME
    from megatron_ultralong.checkpoint.formats.hugging_face_config import CONFIG_FILE

    folder = Path(name)
    is_there = bool(name) and (folder / CONFIG_FILE).is_file()
    return is_there and not (folder / FILE_NAME).is_file()


_CARDS = re.compile(r"[1-5]0[5-9]0|[2-6][05]00")
"""Numbers by which GeForce (``4090``) and workstation cards (``6000``) are known."""


def _check_gpu_name(words: Sequence[str]) -> None:
    """Raise InputError for ``--gpu 8``, which means their number; ``4090`` is a card."""
    for flag, value in itertools.pairwise(one for word in words for one in word.split("=", 1)):
        if flag == "--gpu" and value.isdecimal() and not _CARDS.fullmatch(value):
            raise InputError(
                f"--gpu {value}: that is not the name of a GPU; their number is --gpus {value}, "
                f"names are {', '.join(HARDWARE)}"
            )


def source_of(command: PlanConfig, recipe: str) -> Source:
    """The model of ``--model``, else of ``--load``, else the recipe's.

    Raises:
        InputError: it is neither known nor a folder that tells.
    """
    from megatron_ultralong.checkpoint.disk.metadata import FILE_NAME, load_metadata
    from megatron_ultralong.checkpoint.formats import hugging_face_config as hugging_face
    from megatron_ultralong.checkpoint.formats.rope_block import rope_scaling

    name = command.model or command.run.load or shape.model_of_recipe(recipe)
    folder = Path(name)
    if (folder / FILE_NAME).is_file():
        metadata = load_metadata(folder)
        return Source(name, metadata.model, metadata.rope_scaling)
    if (folder / hugging_face.CONFIG_FILE).is_file():
        values = hugging_face.read_config(folder)
        return Source(name, hugging_face.model_config(values), rope_scaling(values))
    if folder.is_dir():
        raise InputError(
            f"{name} has neither {FILE_NAME} nor {hugging_face.CONFIG_FILE}"
            + (
                one_inside(folder, (FILE_NAME, hugging_face.CONFIG_FILE))
                or ": name a checkpoint of this project or a Hugging Face folder"
            )
        )
    flag = "--load" if name == command.run.load != command.model else "--model"
    if flag == "--load" and len(folder.parts) > 1:  # of a cluster that this machine does not see
        raise InputError(
            f"--load {missing(folder)}: to plan without it, add what model it holds, such as "
            f"--model llama3.1-8b; known: {', '.join(shape.MODELS)}"
        )
    return Source(name, shape.model_by_name(name, flag), yarn.published_scaling(name))


def longest_of(config: TrainingConfig) -> int | None:
    """Tokens of the longest conversation of ``--data-path``; None: not known."""
    if not (isinstance(config, SftConfig) and config.data.data_path):
        return None
    from megatron_ultralong.data.rows.manifest import load_chat_manifest

    splits = load_chat_manifest(Path(config.data.data_path)).splits.values()
    return max(split.longest for split in splits)


def with_rows(command: PlanConfig) -> tuple[PlanConfig, Rows | None]:
    """The command with its rows' length, and what is known of the rows of ``--data-path``.

    Raises:
        InputError: the folder holds no rows, or rows of another length.
    """
    config = command.run
    length = config.data.seq_length
    if not config.data.data_path:
        if isinstance(config, SftConfig) and not length:
            return dataclasses.replace(command, run=with_fields(config, seq_length=SFT_ROW)), None
        return command, None
    from megatron_ultralong.data.rows.packed import PackedRows

    rows = PackedRows(Path(config.data.data_path) / "train")
    length = length or rows.seq_length
    if length != rows.seq_length:
        raise InputError(
            f"seq_length ({length}) is not the length of the rows in {config.data.data_path} "
            f"({rows.seq_length}): use --seq-length {rows.seq_length}, or leave --data-path out"
        )
    config = with_fields(config, seq_length=length)
    return dataclasses.replace(command, run=config), _known(rows, config)


def _known(rows: PackedRows, config: TrainingConfig) -> Rows:
    """Rows in even steps; rows of conversations always have their boundaries beside them."""
    from megatron_ultralong.data.rows.manifest import load_manifest
    from megatron_ultralong.data.rows.stored import StoredRow
    from megatron_ultralong.plan.area import DRAWN_ROWS, DocumentRows, Rows
    from megatron_ultralong.sequence.documents import causal_area

    separators: tuple[int, ...] = ()
    if not rows.has_boundaries:
        separators = tuple(load_manifest(Path(config.data.data_path)).separator_ids)
    read = range(0, len(rows), max(1, len(rows) // MOST_ROWS))
    edges = [StoredRow(rows, number, separators).cu_seqlens for number in read]
    some = edges[:: max(1, len(edges) // DRAWN_ROWS)][:DRAWN_ROWS]
    return Rows(
        num_rows=len(rows),
        mean_area=sum(map(causal_area, edges)) / len(edges),
        documents=DocumentRows(tuple(tuple(each.tolist()) for each in some)),
    )
