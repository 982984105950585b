"""The verbs of ``ultralong convert``: import, export and verify."""

from __future__ import annotations

import dataclasses
import json as json_format
import time
from pathlib import Path
from typing import Literal

import torch
from tyro.conf import Positional

from megatron_ultralong.checkpoint import small_files
from megatron_ultralong.checkpoint.folder import RELEASE, write_latest
from megatron_ultralong.checkpoint.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.hugging_face_config import (
    CONFIG_FILE,
    export_config,
    good_for,
    read_config,
    tokenizer_sha256,
)
from megatron_ultralong.checkpoint.hugging_face_writer import SafetensorsWriter
from megatron_ultralong.checkpoint.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.metadata import (
    SOURCE_FOLDER,
    CheckpointMetadata,
    save_metadata,
)
from megatron_ultralong.checkpoint.report import ConversionReport, WeightsSummary, show
from megatron_ultralong.checkpoint.staging import new_folder
from megatron_ultralong.checkpoint.tensor_file import TensorInfo
from megatron_ultralong.checkpoint.torch_dist_writer import write_torch_dist
from megatron_ultralong.checkpoint.verification import (
    Comparison,
    Model,
    compare,
    convert_tensor,
    converted_dtype,
    num_bytes,
)
from megatron_ultralong.checkpoint.weight_map import weight_map
from megatron_ultralong.progress import progress

DtypeName = Literal["keep", "bf16", "fp16", "fp32"]
_DTYPES = {"keep": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """Convert a Hugging Face model to a Megatron checkpoint."""

    src: Positional[Path]
    """Hugging Face folder: config.json, safetensors (or pytorch_model.bin), tokenizer."""
    dst: Positional[Path]
    """New folder for the Megatron checkpoint."""
    verify: bool = True
    """Read all tensors back and compare them bit for bit."""
    tokenizer: bool = True
    """Refuse a source without tokenizer files."""
    json: bool = False
    """Print the report as JSON."""


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Convert a Megatron checkpoint to a Hugging Face model."""

    src: Positional[Path]
    """Megatron checkpoint: a folder with latest_checkpointed_iteration.txt, or one iteration."""
    dst: Positional[Path]
    """New folder for the Hugging Face model."""
    iteration: int | None = None
    """Iteration to export; the latest by default, 0 for release."""
    dtype: DtypeName = "keep"
    """Dtype of the exported weights."""
    max_shard_size_gb: float = 5.0
    """Largest safetensors file, in 10^9 bytes."""
    verify: bool = True
    """Read all tensors back and compare them bit for bit."""
    json: bool = False
    """Print the report as JSON."""


@dataclasses.dataclass(frozen=True)
class VerifyConfig:
    """Compare all weights of two models bit for bit, each Hugging Face or Megatron."""

    a: Positional[Path]
    """Model that is right."""
    b: Positional[Path]
    """Model to compare with it."""
    iteration: int | None = None
    """Iteration of the Megatron checkpoints; the latest by default."""
    dtype: DtypeName = "keep"
    """Convert the first model to this dtype before comparing."""
    json: bool = False
    """Print the report as JSON."""


def import_checkpoint(config: ImportConfig) -> ConversionReport:
    """Hugging Face folder -> Megatron torch_dist checkpoint (``release``), any layout can load it.

    Raises:
        InputError: the source is incomplete or not a plain Llama, or the output is in use.
    """
    source = HuggingFaceFolder(config.src)
    if config.tokenizer:
        small_files.check_tokenizer(config.src)
    metadata = CheckpointMetadata(
        model=source.model,
        rope_scaling=source.rope_scaling,
        source_model=source.name,
        tokenizer_sha256=tokenizer_sha256(config.src),
    )
    size = num_bytes(source)
    with new_folder(config.dst, size) as folder:
        start = time.monotonic()
        with progress("import", size, "B") as bar:
            write_torch_dist(folder / RELEASE, source, bar.advance)
        small_files.keep(config.src, folder / SOURCE_FOLDER)
        save_metadata(folder, metadata)
        write_latest(folder, RELEASE)
        written = time.monotonic()
        if config.verify:
            _compare(source, MegatronCheckpoint(folder), None)
        verified = time.monotonic()
    report = ConversionReport(
        action="import",
        source=str(config.src),
        output=str(config.dst),
        iteration=0,
        weights=summarise(source),
        seconds=written - start,
        verify_seconds=verified - written,
        verified=config.verify,
        rope=dataclasses.asdict(source.rope_scaling) if source.rope_scaling else None,
        max_position_embeddings=source.model.max_position_embeddings,
        tokenizer_sha256=metadata.tokenizer_sha256,
    )
    show(dataclasses.asdict(report), config.json)
    return report


def export_checkpoint(config: ExportConfig) -> ConversionReport:
    """Megatron checkpoint -> Hugging Face folder that transformers and vLLM load.

    Raises:
        InputError: no such checkpoint, its rotary embedding has no Hugging Face form, or the
            output is in use.
    """
    source = MegatronCheckpoint(config.src, config.iteration)
    dtype = _DTYPES[config.dtype]
    metadata = source.metadata
    main_dtype = converted_dtype(source.dtype(weight_map(source.model)[0]), dtype)
    values = export_config(read_config(source.source_folder), metadata, main_dtype)
    size = num_bytes(source, dtype)
    with new_folder(config.dst, size) as folder:
        start = time.monotonic()
        _write_weights(source, folder, dtype, int(config.max_shard_size_gb * 1e9))
        small_files.restore(source.source_folder, folder, source.model.max_position_embeddings)
        text = json_format.dumps(values, indent=2) + "\n"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
        written = time.monotonic()
        if config.verify:
            _compare(source, HuggingFaceFolder(folder), dtype)
        verified = time.monotonic()
    report = ConversionReport(
        action="export",
        source=str(config.src),
        output=str(config.dst),
        iteration=source.iteration,
        weights=summarise(source, dtype),
        seconds=written - start,
        verify_seconds=verified - written,
        verified=config.verify,
        rope=values["rope_scaling"],
        max_position_embeddings=source.model.max_position_embeddings,
        tokenizer_sha256=metadata.tokenizer_sha256,
        good_for=good_for(metadata),
    )
    show(dataclasses.asdict(report), config.json)
    return report


def verify(config: VerifyConfig) -> Comparison:
    """Compare two models bit for bit.

    Raises:
        InputError: they differ; the message names the tensors.
    """
    models = [open_model(path, config.iteration) for path in (config.a, config.b)]
    comparison = _compare(models[0], models[1], _DTYPES[config.dtype])
    values = {"action": "verify", "a": str(config.a), "b": str(config.b), "equal": True}
    show({**values, **dataclasses.asdict(comparison)}, config.json)
    return comparison


def open_model(path: Path, iteration: int | None = None) -> HuggingFaceFolder | MegatronCheckpoint:
    """The model at ``path``, in whichever format it is.

    Raises:
        InputError: it is in none.
    """
    if (path / CONFIG_FILE).is_file():
        return HuggingFaceFolder(path)
    return MegatronCheckpoint(path, iteration)


def _compare(source: Model, output: Model, dtype: torch.dtype | None) -> Comparison:
    with progress("verify", num_bytes(output), "B") as bar:
        return compare(source, output, dtype, bar.advance)


def _write_weights(
    source: MegatronCheckpoint, folder: Path, dtype: torch.dtype | None, max_shard_size: int
) -> None:
    weights = weight_map(source.model)
    tensors = [
        (name, TensorInfo(converted_dtype(source.dtype(weight), dtype), shape))
        for weight in weights
        for name, shape in zip(weight.names, weight.shapes, strict=True)
    ]
    writer = SafetensorsWriter(folder, tensors, max_shard_size)
    try:
        with progress("export", num_bytes(source, dtype), "B") as bar:
            for weight in weights:
                for name, part in zip(weight.names, source.read(weight), strict=True):
                    tensor = convert_tensor(name, part, dtype)
                    writer.write(name, tensor)
                    bar.advance(tensor.nbytes)
        writer.finish()
    finally:
        writer.close()


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
