"""What ``ultralong plan`` reads: recipes, the shape of a model, the documents of rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from megatron_ultralong.checkpoint.hugging_face_config import CONFIG_FILE, model_config, read_config
from megatron_ultralong.checkpoint.metadata import FILE_NAME, load_metadata
from megatron_ultralong.config import ModelConfig, PretrainConfig
from megatron_ultralong.data.rows import PackedRows
from megatron_ultralong.errors import InputError
from megatron_ultralong.flops import attention_area
from megatron_ultralong.plan.command import PlanConfig
from megatron_ultralong.plan.shapes import model_by_name, model_of_recipe
from megatron_ultralong.recipes import PRETRAIN_RECIPES

MOST_ROWS = 1000
"""Whose documents are read for a mean."""


def default_run(recipe: str) -> PretrainConfig:
    """The configuration of a recipe.

    Raises:
        InputError: it is not known.
    """
    if recipe not in PRETRAIN_RECIPES:
        raise InputError(f"recipe {recipe!r} is not known; known: {', '.join(PRETRAIN_RECIPES)}")
    return PRETRAIN_RECIPES[recipe]()


def shape_of(command: PlanConfig, recipe: str) -> tuple[ModelConfig, str]:
    """Shape and name of the model: of ``--model``, else of ``--load``, else the recipe's.

    Raises:
        InputError: it is neither known nor a folder that tells.
    """
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


def rows_area(command: PlanConfig) -> tuple[PlanConfig, float | None]:
    """The command with its folder's row length, and the mean attention area of those rows.

    None without ``--data-path``.

    Raises:
        InputError: the folder holds no rows, or rows of another length.
    """
    config = command.run
    if not config.data.data_path:
        return command, None
    rows = PackedRows(Path(config.data.data_path) / "train")
    length = config.data.seq_length or rows.seq_length
    if length != rows.seq_length:
        raise InputError(
            f"seq_length ({length}) is not the length of the rows in {config.data.data_path} "
            f"({rows.seq_length}): leave --data-path out, or use --seq-length {rows.seq_length}"
        )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, seq_length=length))
    return dataclasses.replace(command, run=config), _mean_area(rows, config)


def _mean_area(rows: PackedRows, config: PretrainConfig) -> float:
    from megatron_ultralong.data.chunks import StoredRow
    from megatron_ultralong.data.manifest import load_manifest

    separators = tuple(load_manifest(Path(config.data.data_path)).separator_ids)
    step = max(1, len(rows) // MOST_ROWS)
    areas = [
        attention_area(StoredRow(rows, number, separators).cu_seqlens)
        for number in range(0, len(rows), step)
    ]
    return sum(areas) / len(areas)
