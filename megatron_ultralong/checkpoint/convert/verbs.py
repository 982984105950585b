"""The verbs of ``ultralong convert``: import, export and verify."""

import dataclasses
import time
from typing import Any

from megatron_ultralong.checkpoint.convert import (
    early_checks,
    model_writer,
    small_files,
    verification,
)
from megatron_ultralong.checkpoint.convert.report import ConversionReport, good_for, show, summarise
from megatron_ultralong.checkpoint.convert.verification import Comparison
from megatron_ultralong.checkpoint.disk.folder import RELEASE, write_latest
from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata, save_metadata
from megatron_ultralong.checkpoint.formats import gguf_file, hugging_face_config, meta, models
from megatron_ultralong.checkpoint.formats.kind import GGUF_FILE, is_gguf
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.tokenizer_files import TokenizerFiles
from megatron_ultralong.checkpoint.formats.torch_dist_writer import write_torch_dist
from megatron_ultralong.checkpoint.formats.weight_map import WeightSource, model_weights
from megatron_ultralong.checkpoint.logits.check import check_logits
from megatron_ultralong.config.convert import ExportConfig, ImportConfig, VerifyConfig
from megatron_ultralong.data.tokenize.trained_template import GENERATION_FILE, missed_end
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.journal import Journal
from megatron_ultralong.program.output import output_folder
from megatron_ultralong.program.progress import progress


def import_checkpoint(config: ImportConfig) -> ConversionReport:
    """Hugging Face or Meta folder -> Megatron torch_dist checkpoint, which any layout can load.

    Raises:
        InputError: the source is incomplete or of no known family, no export could have the rotary
            embedding that was asked for, or the output is in use.
    """
    early_checks.check_import(config)
    found = models.open_model(config.src)
    assert not isinstance(found, MegatronCheckpoint)
    source = models.extended(found, config.rope)
    is_extended = source.rope_scaling != found.rope_scaling
    positions = (found.model.max_position_embeddings, source.model.max_position_embeddings)
    metadata = CheckpointMetadata(
        model=source.model,
        rope_scaling=source.rope_scaling,
        source_model=found.name,
        tokenizer_sha256=hugging_face_config.tokenizer_sha256(config.src),
        angle_precision=config.rope.angle_precision,
        trained_seq_length=min(positions) if is_extended else None,
    )
    size = verification.num_bytes(source)
    conversion = model_writer.describe("import", found, rope=dataclasses.asdict(config.rope))
    with output_folder(
        config.dst, "convert", conversion, flag=early_checks.OUTPUT, num_bytes=size
    ) as made:
        folder, journal = made.path, Journal(made, "tensors")
        times = [time.monotonic()]
        with progress("import", size - journal.num_bytes, "B") as bar:
            write_torch_dist(folder / RELEASE, source, journal, bar.advance)
        kept = small_files.keep(found.folder, folder)
        if isinstance(found, meta.MetaFolder):
            dtype = found.dtype(model_weights(found.model)[0])
            defaults = meta.hugging_face_defaults(found.model)
            values = hugging_face_config.export_config(defaults, metadata, dtype)
            hugging_face_config.write_config(kept, values)
        save_metadata(folder, metadata)
        write_latest(folder, RELEASE)
        times.append(time.monotonic())
        if config.verify:
            verification.compare(source, MegatronCheckpoint(folder))
        times.append(time.monotonic())
    return _report(
        *("import", config, source, times),
        iteration=0,
        weights=summarise(source),
        num_resumed_tensors=journal.num_resumed,
        trained_positions=metadata.trained_positions,
        tokenizer_sha256=metadata.tokenizer_sha256,
    )


def export_checkpoint(config: ExportConfig) -> ConversionReport:
    """Megatron checkpoint -> Hugging Face folder, or Meta's, or a folder with a GGUF file.

    Raises:
        InputError: no such checkpoint, its rotary embedding has no form in that format, or
            the output is in use.
    """
    lines = early_checks.check_export(config)
    source = MegatronCheckpoint(
        config.src, config.iteration, verify_checksums=config.verify_checksums
    )
    source.check_tensors()
    for line in lines:
        tell(f"warning: {line}")
    if config.format == "huggingface" and (end := missed_end(source.source_folder)):
        text, number = end
        tell(
            f"warning: the chat template ends answers with {text}, where no file of the model "
            f"stops: engines will write on behind them; add {number} to eos_token_id of "
            f"{config.dst / GENERATION_FILE}"
        )
    dtype = verification.DTYPES.get(config.dtype)
    size = verification.num_bytes(source, dtype)
    shard_size = int(config.max_shard_size_gb * 1e9)
    conversion = model_writer.describe(
        "export",
        source,
        format=config.format,
        dtype=config.dtype,
        **({"shards": config.num_shards} if config.format == "meta" else {"shard": shard_size}),
    )
    with output_folder(
        config.dst, "convert", conversion, flag=early_checks.OUTPUT, num_bytes=size
    ) as made:
        folder, journal = made.path, Journal(made, "tensors")
        times = [time.monotonic()]
        changes: dict[str, list[str]] = {}
        if config.format == "meta":
            model_writer.write_meta(source, folder, journal, dtype, config.num_shards)
        elif config.format == "gguf":
            model_writer.write_gguf(source, folder, journal, dtype)
        else:
            changes = model_writer.write_hugging_face(
                source, folder, journal, dtype, shard_size, config.tokenizer_merges
            )
        times.append(time.monotonic())
        if config.verify and config.format == "gguf":
            verification.compare_gguf(source, folder / GGUF_FILE, dtype)
        elif config.verify:
            verification.compare(source, models.open_model(folder), dtype)
        times.append(time.monotonic())
    report = _report(
        *("export", config, source, times),
        iteration=source.iteration,
        weights=summarise(source, dtype),
        num_resumed_tensors=journal.num_resumed,
        trained_positions=source.metadata.trained_positions,
        tokenizer_sha256=hugging_face_config.tokenizer_sha256(config.dst),
        good_for=_good_for(source, config),
        changed_files=changes,
    )
    if source.metadata.untrained_positions:
        tell(source.metadata.untrained_positions)
    return report


def verify(config: VerifyConfig) -> Comparison:
    """Compare two models bit for bit, and what they compute.

    Raises:
        InputError: they differ; the message names the tensors, or says by how much.
    """
    early_checks.check_verify(config)
    if is_gguf(config.b):
        comparison = _verify_gguf(config)
    else:
        a, b = (
            models.open_model(path, config.iteration, verify_checksums=config.verify_checksums)
            for path in (config.a, config.b)
        )
        comparison = verification.compare(a, b, verification.DTYPES.get(config.dtype))
        if config.logits:
            how = (config.logits_seq_length, config.logits_dtype, config.logits_method)
            logits = check_logits((a, b), *how)
            comparison = dataclasses.replace(comparison, logits=logits)
    values = {"action": "verify", "a": str(config.a), "b": str(config.b), "equal": True}
    show({**values, **dataclasses.asdict(comparison)}, config.json)
    return comparison


def _verify_gguf(config: VerifyConfig) -> Comparison:
    source = models.open_model(config.a, config.iteration, verify_checksums=config.verify_checksums)
    if not isinstance(source, MegatronCheckpoint):
        raise InputError(
            f"{config.b} is a GGUF file, which is compared with the Megatron checkpoint that it "
            f"was exported from, and {config.a} is a model in {source.format}'s format: import "
            "that and export it again"
        )
    if config.logits:
        raise InputError(
            f"--logits computes no GGUF file ({config.b}): leave it out, or compare the answers "
            "of llama.cpp with those of `ultralong generate`"
        )
    path = config.b / GGUF_FILE if config.b.is_dir() else config.b
    return verification.compare_gguf(source, path, verification.DTYPES.get(config.dtype))


def _report(
    action: str,
    config: ImportConfig | ExportConfig,
    source: WeightSource,
    times: list[float],
    **values: Any,
) -> ConversionReport:
    """Report and show a conversion, which began, had written and had verified at ``times``."""
    start, written, verified = times
    scaling = source.rope_scaling
    report = ConversionReport(
        action=action,
        source=str(config.src),
        output=str(config.dst),
        seconds=written - start,
        verify_seconds=verified - written,
        verified=config.verify,
        rope=dataclasses.asdict(scaling) if scaling else None,
        max_position_embeddings=source.model.max_position_embeddings,
        **values,
    )
    show(dataclasses.asdict(report), config.json)
    return report


def _good_for(source: MegatronCheckpoint, config: ExportConfig) -> dict[str, Any]:
    if config.format == "meta":
        return {"tokenizer": small_files.meta_tokenizer(source.source_folder)}
    if config.format == "gguf":
        return {"llama.cpp": gguf_file.readers(source.rope_scaling, source.model)}
    tokenizer = TokenizerFiles(source.source_folder)
    return good_for(source.metadata, tokenizer, config.tokenizer_merges)
