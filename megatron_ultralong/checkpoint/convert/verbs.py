"""The verbs of ``ultralong convert``: import, export and verify."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.checkpoint.convert import small_files
from megatron_ultralong.checkpoint.convert.inspection import open_model, summarise
from megatron_ultralong.checkpoint.convert.model_writer import (
    describe,
    write_hugging_face,
    write_json,
    write_meta,
)
from megatron_ultralong.checkpoint.convert.report import ConversionReport, good_for, show
from megatron_ultralong.checkpoint.convert.verification import (
    Comparison,
    Model,
    compare,
    compared_bytes,
    num_bytes,
)
from megatron_ultralong.checkpoint.disk.folder import RELEASE, write_latest
from megatron_ultralong.checkpoint.disk.metadata import (
    SOURCE_FOLDER,
    CheckpointMetadata,
    save_metadata,
)
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.hugging_face_config import (
    CONFIG_FILE,
    export_config,
    tokenizer_sha256,
)
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.meta import MetaFolder, hugging_face_defaults
from megatron_ultralong.checkpoint.formats.tokenizer_files import TokenizerFiles
from megatron_ultralong.checkpoint.formats.torch_dist_writer import write_torch_dist
from megatron_ultralong.checkpoint.formats.weight_map import weight_map
from megatron_ultralong.checkpoint.logits.check import ExtendedModel, check_logits
from megatron_ultralong.config.convert import ExportConfig, ImportConfig, VerifyConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import check_ranges
from megatron_ultralong.program.new_folder import new_folder
from megatron_ultralong.program.progress import progress

_DTYPES = {"keep": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def import_checkpoint(config: ImportConfig) -> ConversionReport:
    """Hugging Face or Meta folder -> Megatron torch_dist checkpoint, which any layout can load.

    Raises:
        InputError: the source is incomplete or not a plain Llama, no export could have the rotary
            embedding that was asked for, or the output is in use.
    """
    check_ranges(config)
    found = open_model(config.src)
    if isinstance(found, MegatronCheckpoint):
        raise InputError(f"{config.src} is a Megatron checkpoint already: use it as it is")
    if config.tokenizer:
        small_files.check_tokenizer(config.src)
    source = ExtendedModel(found, config.rope)
    source.check()
    metadata = CheckpointMetadata(
        model=source.model,
        rope_scaling=source.rope_scaling,
        source_model=found.name,
        tokenizer_sha256=tokenizer_sha256(config.src),
        angle_precision=config.rope.angle_precision,
        trained_seq_length=source.trained_seq_length,
    )
    size = num_bytes(source)
    conversion = describe("import", found, rope=dataclasses.asdict(config.rope))
    with new_folder(config.dst, size, conversion, resume=config.resume) as (folder, manifest):
        start = time.monotonic()
        with progress("import", size - manifest.num_bytes, "B") as bar:
            write_torch_dist(folder / RELEASE, source, manifest, bar.advance)
        _keep_small_files(found, folder / SOURCE_FOLDER, metadata)
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
        num_resumed_tensors=manifest.num_resumed,
        rope=_rope(source),
        max_position_embeddings=source.model.max_position_embeddings,
        tokenizer_sha256=metadata.tokenizer_sha256,
    )
    show(dataclasses.asdict(report), config.json)
    return report


def export_checkpoint(config: ExportConfig) -> ConversionReport:
    """Megatron checkpoint -> Hugging Face folder that transformers and vLLM load, or Meta's.

    Raises:
        InputError: no such checkpoint, its rotary embedding has no form in that format, or
            the output is in use.
    """
    check_ranges(config)
    source = MegatronCheckpoint(
        config.src, config.iteration, verify_checksums=config.verify_checksums
    )
    source.check_tensors()
    dtype = _DTYPES[config.dtype]
    size = num_bytes(source, dtype)
    shard_size = int(config.max_shard_size_gb * 1e9)
    conversion = describe(
        "export",
        source,
        format=config.format,
        dtype=config.dtype,
        **({"shards": config.num_shards} if config.format == "meta" else {"shard": shard_size}),
    )
    with new_folder(config.dst, size, conversion, resume=config.resume) as (folder, manifest):
        start = time.monotonic()
        changes: dict[str, list[str]] = {}
        if config.format == "meta":
            write_meta(source, folder, manifest, dtype, config.num_shards)
        else:
            changes = write_hugging_face(
                source, folder, manifest, dtype, shard_size, config.tokenizer_merges
            )
        written = time.monotonic()
        if config.verify:
            _compare(source, open_model(folder), dtype)
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
        num_resumed_tensors=manifest.num_resumed,
        rope=_rope(source),
        max_position_embeddings=source.model.max_position_embeddings,
        tokenizer_sha256=tokenizer_sha256(config.dst),
        good_for=_good_for(source, config),
        changed_files=changes,
    )
    show(dataclasses.asdict(report), config.json)
    return report


def verify(config: VerifyConfig) -> Comparison:
    """Compare two models bit for bit, and what they compute.

    Raises:
        InputError: they differ; the message names the tensors, or says by how much.
    """
    check_ranges(config)
    models = [
        open_model(path, config.iteration, verify_checksums=config.verify_checksums)
        for path in (config.a, config.b)
    ]
    if config.logits and config.dtype != "keep":
        raise InputError("--logits compares models of one dtype: leave --dtype out")
    comparison = _compare(models[0], models[1], _DTYPES[config.dtype])
    if config.logits:
        logits = check_logits(
            models[0],
            models[1],
            config.logits_seq_length,
            config.logits_dtype,
            config.logits_method,
        )
        comparison = dataclasses.replace(comparison, logits=logits)
    values = {"action": "verify", "a": str(config.a), "b": str(config.b), "equal": True}
    show({**values, **dataclasses.asdict(comparison)}, config.json)
    return comparison


def _compare(source: Model, output: Model, dtype: torch.dtype | None) -> Comparison:
    with progress("verify", compared_bytes(source, output), "B") as bar:
        return compare(source, output, dtype, bar.advance)


def _good_for(source: MegatronCheckpoint, config: ExportConfig) -> dict[str, Any]:
    if config.format == "meta":
        return {"tokenizer": small_files.meta_tokenizer(source.source_folder)}
    tokenizer = TokenizerFiles(source.source_folder)
    return good_for(source.metadata, tokenizer, config.tokenizer_merges)


def _keep_small_files(
    source: HuggingFaceFolder | MetaFolder, folder: Path, metadata: CheckpointMetadata
) -> None:
    small_files.keep(source.folder, folder)
    if isinstance(source, MetaFolder):
        dtype = source.dtype(weight_map(source.model)[0])
        values = export_config(hugging_face_defaults(source.model), metadata, dtype)
        write_json(folder / CONFIG_FILE, values)


def _rope(model: Model) -> dict[str, Any] | None:
    return dataclasses.asdict(model.rope_scaling) if model.rope_scaling else None
