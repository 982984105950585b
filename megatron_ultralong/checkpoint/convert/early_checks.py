"""What can be told of a conversion before torch is imported, which takes seconds."""

from pathlib import Path

from megatron_ultralong.checkpoint.convert import small_files
from megatron_ultralong.checkpoint.disk.folder import resolve_readable
from megatron_ultralong.checkpoint.disk.metadata import (
    FILE_NAME,
    CheckpointMetadata,
    load_metadata,
    no_metadata,
)
from megatron_ultralong.checkpoint.formats import hugging_face_config, rope_block, rope_readers
from megatron_ultralong.checkpoint.formats.kind import is_gguf, kind_of
from megatron_ultralong.config import convert
from megatron_ultralong.program import fields, output
from megatron_ultralong.program.errors import InputError, missing
from megatron_ultralong.program.optional import check_optional_package

OUTPUT = "output"
"""What messages call the new folder, which has no flag."""


def check_import(config: convert.ImportConfig, num_ranks: int = 1) -> None:
    """Check numbers, source and output of an import.

    Raises:
        InputError: one of them is wrong.
    """
    del num_ranks
    fields.check_ranges(config)
    if kind_of(config.src) == "megatron":
        if not (config.src / FILE_NAME).is_file():
            raise no_metadata(config.src)
        raise InputError(f"{config.src} is a Megatron checkpoint already: use it as it is")
    _check_model(config.src)
    if config.tokenizer:
        small_files.check_tokenizer(config.src)
    small_files.check_readable(config.src)
    output.check_output(config.dst, OUTPUT)


def check_export(config: convert.ExportConfig, num_ranks: int = 1) -> list[str]:
    """Check numbers, checkpoint, engines and output of an export.

    Returns what those who serve it with the engines of ``--for`` have to know, in lines.

    Raises:
        InputError: one of them is wrong.
    """
    del num_ranks
    fields.check_ranges(config)
    metadata = _metadata(config.src, config.iteration)
    lines = _check_readers(metadata, config)
    if config.dst.suffix == ".gguf" and config.format != "gguf":
        raise InputError(
            f"output {config.dst} has the name of a GGUF file, and --format {config.format} writes "
            f"a folder of other files: add --format gguf, or name it {config.dst.with_suffix('')}"
        )
    if config.format == "gguf":
        check_optional_package("gguf", "--format gguf")
    output.check_output(config.dst, OUTPUT)
    return lines


def check_verify(config: convert.VerifyConfig, num_ranks: int = 1) -> None:
    """Check numbers and models of a comparison.

    Raises:
        InputError: one of them is wrong.
    """
    del num_ranks
    fields.check_ranges(config)
    _check_model(config.a, config.iteration)
    if not is_gguf(config.b):
        _check_model(config.b, config.iteration)
        if config.logits and config.dtype != "keep":
            raise InputError("--logits compares models of one dtype: leave --dtype out")
        if config.logits:
            check_optional_package("transformers", "--logits")
    elif not config.b.exists():
        raise InputError(f"GGUF file {missing(config.b)}")
    else:
        check_optional_package("gguf", f"a comparison with {config.b}")


def check_inspect(config: convert.InspectConfig, num_ranks: int = 1) -> None:
    """Check numbers and model to be shown.

    Raises:
        InputError: one of them is wrong.
    """
    del num_ranks
    fields.check_ranges(config)
    is_lone = config.src.is_file() and config.src.suffix == ".json"
    if not is_lone and kind_of(config.src) == "megatron":  # a config.json may be of any model
        _metadata(config.src, config.iteration)


def _check_model(path: Path, iteration: int | None = None) -> None:
    """Check the description of a model on disk."""
    kind = kind_of(path)
    if kind == "megatron":
        _metadata(path, iteration)
    elif kind == "huggingface":
        values = hugging_face_config.read_config(path)
        hugging_face_config.model_config(values)
        rope_block.rope_scaling(values)


def _metadata(path: Path, iteration: int | None) -> CheckpointMetadata:
    folder, _ = resolve_readable(path, iteration)
    return load_metadata(folder.parent)


def _check_readers(metadata: CheckpointMetadata, config: convert.ExportConfig) -> list[str]:
    names = list(dict.fromkeys(filter(None, map(str.strip, config.engines.lower().split(",")))))
    if not names:
        return []
    is_read = config.format == "huggingface" or (config.format, *names) == ("gguf", "llama.cpp")
    if not is_read:
        raise InputError(
            f"--for {config.engines} asks about the rope block of a config.json, and --format "
            f"{config.format} writes none: leave one out"
        )
    if config.format != "huggingface":
        return []
    return rope_readers.check_readers(hugging_face_config.exported_rope(metadata), names)
