"""What ``ultralong plan`` reads: recipes, the shape of a model, the documents of rows."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ultralong.config.command_line import parse
from megatron_ultralong.config.recipes import PRETRAIN_RECIPES, SFT_RECIPES
from megatron_ultralong.config.sft import SftConfig
from megatron_ultralong.config.training import PretrainConfig, TrainingConfig
from megatron_ultralong.model.flops import attention_area
from megatron_ultralong.model.shape import ModelConfig, model_by_name, model_of_recipe
from megatron_ultralong.plan.area import DRAWN_ROWS, DocumentRows, Rows
from megatron_ultralong.plan.command import PlanConfig, plan_run
from megatron_ultralong.plan.report import Plan
from megatron_ultralong.program.ending import PROGRAM
from megatron_ultralong.program.errors import InputError

if TYPE_CHECKING:
    from megatron_ultralong.data.rows.packed import PackedRows

MOST_ROWS = 1000
"""Whose documents are read for a mean."""
SFT_ROW = 8192
"""Tokens of a row of conversations as ``prepare chat`` packs them by default."""


def plan(words: Sequence[str]) -> Plan | None:
    """Plan what the words of a command line ask for: a recipe or ``--config FILE``, and flags.

    Raises:
        InputError: bad input, or nothing fits.
    """
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(
            f"usage: {PROGRAM} plan RECIPE|--config FILE --gpus N --gpu NAME [flags, also those "
            f"of pretrain and sft]\n`{PROGRAM} plan RECIPE --help` lists the flags.\n"
        )
        return None
    recipe, run, rest = _start(words)
    command: PlanConfig = parse(PlanConfig, f"{PROGRAM} plan", rest, PlanConfig(run))
    command, rows = with_rows(command)
    model, name = shape_of(command, recipe)
    typed = {word[2:].split("=")[0].replace("-", "_") for word in rest if word.startswith("--")}
    typed |= {name.removeprefix("no_") for name in typed}
    return plan_run(command, recipe, model, name, typed=typed, rows=rows)


def _start(words: Sequence[str]) -> tuple[str, TrainingConfig, list[str]]:
    """Name and configuration to begin with, and the words that follow."""
    if words[0] != "--config":
        return words[0], default_run(words[0]), list(words[1:])
    from megatron_ultralong.training.config_file import load_config

    if len(words) < 2:
        raise InputError("--config needs a file: the configuration of a run, as it was written")
    path, kinds = Path(words[1]), (PretrainConfig, SftConfig)
    try:
        run: TrainingConfig = load_config(path, kinds[0])
    except InputError as error:
        if "is the configuration of a" not in str(error):
            raise
        run = load_config(path, kinds[1])
    return words[1], run, list(words[2:])


def default_run(recipe: str) -> TrainingConfig:
    """The configuration of a recipe.

    Raises:
        InputError: it is not known.
    """
    recipes: dict[str, Callable[[], TrainingConfig]] = {**PRETRAIN_RECIPES, **SFT_RECIPES}
    if recipe not in recipes:
        raise InputError(f"recipe {recipe!r} is not known; known: {', '.join(recipes)}")
    return recipes[recipe]()


def shape_of(command: PlanConfig, recipe: str) -> tuple[ModelConfig, str]:
    """Shape and name of the model: of ``--model``, else of ``--load``, else the recipe's.

    Raises:
        InputError: it is neither known nor a folder that tells.
    """
    from megatron_ultralong.checkpoint.disk.metadata import FILE_NAME, load_metadata
    from megatron_ultralong.checkpoint.formats.hugging_face_config import (
        CONFIG_FILE,
        model_config,
        read_config,
    )

    name = command.model or command.run.load or model_of_recipe(recipe)
    folder = Path(name)
    if (folder / FILE_NAME).is_file():
        return load_metadata(folder).model, name
    if (folder / CONFIG_FILE).is_file():
        return model_config(read_config(folder), name), name
    if folder.is_dir():
        raise InputError(
            f"{name} has neither {FILE_NAME} nor {CONFIG_FILE}: name a checkpoint of this project "
            "or a Hugging Face folder"
        )
    return model_by_name(name), name


def with_rows(command: PlanConfig) -> tuple[PlanConfig, Rows | None]:
    """The command with its rows' length, and what is known of the rows of ``--data-path``.

    Raises:
        InputError: the folder holds no rows, or rows of another length.
    """
    config = command.run
    length = config.data.seq_length
    if not config.data.data_path:
        if isinstance(config, SftConfig) and not length:
            return _with_length(command, SFT_ROW), None
        return command, None
    from megatron_ultralong.data.rows.packed import PackedRows

    rows = PackedRows(Path(config.data.data_path) / "train")
    length = length or rows.seq_length
    if length != rows.seq_length:
        raise InputError(
            f"seq_length ({length}) is not the length of the rows in {config.data.data_path} "
            f"({rows.seq_length}): leave --data-path out, or use --seq-length {rows.seq_length}"
        )
    return _with_length(command, length), _known(rows, config)


def _with_length(command: PlanConfig, length: int) -> PlanConfig:
    data = dataclasses.replace(command.run.data, seq_length=length)
    return dataclasses.replace(command, run=dataclasses.replace(command.run, data=data))


def _known(rows: PackedRows, config: TrainingConfig) -> Rows:
    """Rows in even steps; rows of conversations always have their boundaries beside them."""
    from megatron_ultralong.data.rows.manifest import load_manifest
    from megatron_ultralong.data.rows.stored import StoredRow

    separators: tuple[int, ...] = ()
    if not rows.has_boundaries:
        separators = tuple(load_manifest(Path(config.data.data_path)).separator_ids)
    read = range(0, len(rows), max(1, len(rows) // MOST_ROWS))
    edges = [StoredRow(rows, number, separators).cu_seqlens for number in read]
    some = edges[:: max(1, len(edges) // DRAWN_ROWS)][:DRAWN_ROWS]
    return Rows(
        num_rows=len(rows),
        mean_area=sum(map(attention_area, edges)) / len(edges),
        documents=DocumentRows(tuple(tuple(each.tolist()) for each in some)),
    )
