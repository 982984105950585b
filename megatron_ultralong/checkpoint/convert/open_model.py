"""A model on disk, opened in whichever format it is."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_ultralong.checkpoint.convert.report import WeightsSummary
from megatron_ultralong.checkpoint.convert.verification import Model, converted_dtype, num_bytes
from megatron_ultralong.checkpoint.disk.folder import FORMAT_FILE, LATEST_FILE
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.hugging_face_config import CONFIG_FILE
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.meta import PARAMS_FILE, MetaFolder
from megatron_ultralong.checkpoint.formats.weight_map import weight_map
from megatron_ultralong.program.errors import InputError


def open_model(
    path: Path, iteration: int | None = None, *, verify_checksums: bool = True
) -> HuggingFaceFolder | MetaFolder | MegatronCheckpoint:
    """The model at ``path``, in whichever format it is.

    All bytes of a Megatron checkpoint are compared with its checksums, unless ``verify_checksums``
    is false; other formats have none.

    Raises:
        InputError: it is in none, or damaged.
    """
    if (path / CONFIG_FILE).is_file():
        if (path / LATEST_FILE).is_file():
            raise InputError(
                f"{path} holds a Hugging Face model ({CONFIG_FILE}) and a Megatron checkpoint "
                f"({LATEST_FILE}), which may be two models: move one of them out of the folder"
            )
        return HuggingFaceFolder(path)
    if (path / PARAMS_FILE).is_file():
        return MetaFolder(path)
    if path.is_dir() and not (path / LATEST_FILE).is_file() and not (path / FORMAT_FILE).is_file():
        raise InputError(
            f"{path} is no model: it has no {CONFIG_FILE} (Hugging Face), no {PARAMS_FILE} (Meta) "
            f"and no {LATEST_FILE} (Megatron)"
        )
    checkpoint = MegatronCheckpoint(path, iteration, verify_checksums=verify_checksums)
    checkpoint.check_tensors()
    return checkpoint


def summarise(source: Model, dtype: torch.dtype | None = None) -> WeightsSummary:
    """Count the weights of ``source``, converted to ``dtype``."""
    weights = weight_map(source.model)
    dtypes = {converted_dtype(source.dtype(weight), dtype) for weight in weights}
    return WeightsSummary(
        num_tensors=sum(len(weight.names) for weight in weights),
        num_parameters=sum(weight.numel for weight in weights),
        num_bytes=num_bytes(source, dtype),
        dtype=", ".join(sorted(str(each).removeprefix("torch.") for each in dtypes)),
    )
