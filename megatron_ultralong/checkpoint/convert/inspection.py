"""A model on disk in whichever format it is, and ``ultralong convert inspect``: what it holds."""

from __future__ import annotations

import dataclasses
import json as json_format
import sys
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.checkpoint.convert.report import WeightsSummary, show, show_rows
from megatron_ultralong.checkpoint.convert.verification import Model, converted_dtype, num_bytes
from megatron_ultralong.checkpoint.disk.folder import FORMAT_FILE, LATEST_FILE, iterations
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.hugging_face_config import CONFIG_FILE, tokenizer_sha256
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.meta import PARAMS_FILE, MetaFolder
from megatron_ultralong.checkpoint.formats.weight_map import weight_map
from megatron_ultralong.config.convert import InspectConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import check_ranges


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


_QKV = "self_attention.linear_qkv.weight"
_OPTIMIZER = "optimizer."


def inspect(config: InspectConfig) -> dict[str, Any]:
    """Format, shape, rotary embedding and tensors of a model; also printed.

    Raises:
        InputError: it is in no known format, or damaged.
    """
    check_ranges(config)
    model = open_model(config.src, config.iteration, verify_checksums=config.verify_checksums)
    values: dict[str, Any] = {
        "format": model.format,
        "path": str(config.src),
        **(_megatron(model) if isinstance(model, MegatronCheckpoint) else _folder(model)),
        **dataclasses.asdict(summarise(model)),
        "model": dataclasses.asdict(model.model),
        "rope": dataclasses.asdict(model.rope_scaling) if model.rope_scaling else None,
        "rope_kind": type(model.rope_scaling).__name__ if model.rope_scaling else "none",
    }
    tensors = _tensors(model)
    if config.json:
        sys.stdout.write(json_format.dumps({**values, "tensors": tensors}, indent=2) + "\n")
    else:
        show(values, as_json=False)
        show_rows(tensors)
    return {**values, "tensors": tensors}


def _folder(model: HuggingFaceFolder | MetaFolder) -> dict[str, Any]:
    return {
        "source_model": model.name,
        "files": [file.path.name for file in model.files],
        "tokenizer_sha256": tokenizer_sha256(model.folder),
    }


def _megatron(model: MegatronCheckpoint) -> dict[str, Any]:
    tensors = model.tensors.tensors
    files = {info.relative_path for info in model.tensors.metadata.storage_data.values()}
    qkv = next(entry for key, entry in tensors.items() if key.endswith(_QKV))
    return {
        "iteration": model.iteration,
        "iterations": iterations(model.root),
        "source_model": model.metadata.source_model,
        "tokenizer_sha256": model.metadata.tokenizer_sha256,
        "trained_positions": model.metadata.trained_positions,
        "separator_ids": list(model.metadata.separator_ids or ()),
        "optimizer_state": any(key.startswith(_OPTIMIZER) for key in tensors),
        # files are named __RANK_NUMBER.distcp
        "ranks_that_wrote": len({name.rsplit("_", 1)[0] for name in files}),
        "written_at_tensor_model_parallel_size": len({chunk.offsets[-2] for chunk in qkv.chunks}),
    }


def _tensors(model: Model) -> list[dict[str, Any]]:
    """One row for each weight, the layers of a weight together, without their common prefix."""
    rows: dict[str, dict[str, Any]] = {}
    for weight in weight_map(model.model):
        if weight.key in rows:
            rows[weight.key]["layers"] += 1
            continue
        rows[weight.key] = {
            "megatron": weight.key.removeprefix("decoder.layers."),
            "hugging_face": [
                name.removeprefix("model.layers.0.").removesuffix(".weight")
                for name in weight.names
            ],
            "layers": 0 if weight.layer is None else 1,
            "shape": " x ".join(map(str, weight.shape)),
            "dtype": str(model.dtype(weight)).removeprefix("torch."),
        }
    return list(rows.values())
