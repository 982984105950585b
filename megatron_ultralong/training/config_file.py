"""The configuration of a run as a file. Nothing here needs torch: it is read before torch is."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from megatron_ultralong.config.plain_values import from_dict, with_fields
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.training import PretrainConfig, SftConfig, TrainingConfig
from megatron_ultralong.program import aside, yaml_file
from megatron_ultralong.program.errors import InputError

Config = TypeVar("Config", bound=TrainingConfig)

CONFIG_FILE = "config.yaml"


def save_config(path: Path, config: TrainingConfig) -> None:
    """Write a resolved configuration as YAML, aside first; see :func:`config_text`."""
    aside.write_aside(path, config_text(config))


def config_text(config: TrainingConfig) -> str:
    """A configuration as YAML, with absolute paths, so that it works from any folder."""
    return yaml_file.yaml_text(dataclasses.asdict(with_absolute_paths(config)))


def with_absolute_paths(config: Config) -> Config:
    """The same with absolute folders; symbolic links in them stay as they are."""
    folders = {"load": config.load, "save": config.save, "data_path": config.data.data_path}
    return with_fields(
        config, **{name: os.path.abspath(folder) for name, folder in folders.items() if folder}
    )


def load_config(path: Path, kind: type[Config]) -> Config:
    """Read a configuration that :func:`save_config` wrote.

    Raises:
        InputError: no such file, or not a configuration of this kind.
    """
    values = yaml_file.read_yaml(path, "configuration")
    found = _kind_of(values, kind)
    if not issubclass(found, kind):
        raise InputError(
            f"{path} is the configuration of a {found.verb} run, but {kind.verb} needs its own"
        )
    RopeConfig.check_block(values.get("rope"), str(path))
    return from_dict(found, values, str(path))


def _kind_of(values: Mapping[str, Any], kind: type[TrainingConfig]) -> type[TrainingConfig]:
    """Whose it is.

    ``num_epochs`` is the one key of instruction tuning that no other has. A file of some keys, as
    users write them, may leave it out; one that a run of `pretrain` wrote, of any release, has all
    blocks.
    """
    if "num_epochs" in values:
        return SftConfig
    fields = dataclasses.asdict(PretrainConfig()).items()
    blocks = {name for name, value in fields if isinstance(value, dict)}
    return SftConfig if kind is SftConfig and not blocks <= values.keys() else PretrainConfig
