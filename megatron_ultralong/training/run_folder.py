"""The folder of a run: its configuration, its metadata, and whether it is resumed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch.distributed as dist
import yaml

from megatron_ultralong.checkpoint.folder import LATEST_FILE, resolve
from megatron_ultralong.checkpoint.metadata import (
    FILE_NAME,
    SOURCE_FOLDER,
    CheckpointMetadata,
    save_metadata,
)
from megatron_ultralong.config import PretrainConfig, from_dict, to_dict
from megatron_ultralong.errors import InputError

CONFIG_FILE = "config.yaml"

_FIXED = (
    ("global_batch_size", lambda config: config.global_batch_size),
    ("seed", lambda config: config.data.seed),
    ("seq_length", lambda config: config.data.seq_length),
    ("document_mask", lambda config: config.data.document_mask),
    ("rope", lambda config: config.rope),
)
"""What a resumed run cannot change: the rows it has consumed, and what its weights mean."""


def save_config(path: Path, config: PretrainConfig) -> None:
    """Write a resolved configuration as YAML, aside first."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
    os.replace(aside, path)


def load_config(path: Path) -> PretrainConfig:
    """Read a configuration that :func:`save_config` wrote.

    Raises:
        InputError: no such file, or not such a configuration.
    """
    if not path.is_file():
        raise InputError(f"configuration {path} does not exist")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a configuration: it holds {type(values).__name__}")
    return from_dict(PretrainConfig, values, str(path))


def open_run(
    root: Path | None, config: PretrainConfig, metadata: CheckpointMetadata
) -> Path | None:
    """Make the folder of a new run, or find the checkpoint that this run goes on from.

    Every rank calls it; rank 0 writes. Returns the checkpoint to resume, or None.

    Raises:
        InputError: the folder is in use by something else, or by a run that differs.
    """
    if root is None:
        return None
    resumed = None
    if (root / LATEST_FILE).is_file():
        _check_same_run(root, config)
        resumed = resolve(root)[0]
    elif root.is_dir() and any(root.iterdir()) and not (root / CONFIG_FILE).is_file():
        raise InputError(
            f"--save {root} is not empty and holds no checkpoints of a run: name an empty or "
            "new folder, so that nothing in it is lost"
        )
    dist.barrier()  # every rank has looked before anything is written
    if dist.get_rank() == 0:
        root.mkdir(parents=True, exist_ok=True)
        save_config(root / CONFIG_FILE, config)
        if not (root / FILE_NAME).is_file():
            save_metadata(root, metadata)
            _copy_source_files(Path(config.load) / SOURCE_FOLDER, root / SOURCE_FOLDER)
    dist.barrier()
    return resumed


def _check_same_run(root: Path, config: PretrainConfig) -> None:
    if not (root / CONFIG_FILE).is_file():
        raise InputError(
            f"--save {root} holds checkpoints but no {CONFIG_FILE}: it is no run's folder, so it "
            "is not written to; name an empty or new folder"
        )
    before = load_config(root / CONFIG_FILE)
    for name, value_of in _FIXED:
        old, new = value_of(before), value_of(config)
        if old != new:
            raise InputError(
                f"--save {root} holds a run with {name} {old}, this one has {new}: a resumed run "
                f"keeps its {name}; use {old}, or another --save for a new run"
            )


def _copy_source_files(source: Path, target: Path) -> None:
    if source.is_dir() and not target.exists():
        aside = target.with_name(target.name + ".partial")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        os.replace(aside, target)
