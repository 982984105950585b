"""What is known of the models that an evaluation is asked for, before any is loaded."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron_ultralong.checkpoint.disk import checksums
from megatron_ultralong.checkpoint.disk.folder import resolve_readable
from megatron_ultralong.checkpoint.disk.metadata import (
    SOURCE_FOLDER,
    CheckpointMetadata,
    load_metadata,
)
from megatron_ultralong.checkpoint.formats import rope_block
from megatron_ultralong.checkpoint.formats.hugging_face_config import model_config, read_config
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.evaluation.options import ModelsConfig
from megatron_ultralong.evaluation.results.file import file_sha256
from megatron_ultralong.evaluation.results.model_record import ModelRecord
from megatron_ultralong.evaluation.results.result import plain_values
from megatron_ultralong.model.shape import ModelConfig, num_parameters
from megatron_ultralong.program.aside import files_in
from megatron_ultralong.program.errors import InputError, missing
from megatron_ultralong.program.fields import check_required

_WEIGHTS = (".safetensors", ".bin")
"""How files of weights end in Hugging Face folders."""
_READERS = 8
"""Threads that read a checkpoint."""
_STATED = ("config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Files there that say how the weights are read."""


def named_folders(config: ModelsConfig, num_ranks: int) -> list[tuple[str, Path]]:
    """Names and folders of ``config.load``, which the layout can hold.

    Raises:
        InputError: a folder is missing or of no known kind, or the layout is none for evaluations.
    """
    check_required(config)
    models = [name_and_folder(argument) for argument in config.load]
    megatron_folders = [folder for _, folder in models if not is_hugging_face(folder)]
    if megatron_folders:
        config.parallel.check_forward_only()
        config.parallel.data_parallel_size(num_ranks)
    for folder in megatron_folders:
        config.parallel.check_model(load_metadata(folder).model)
    if len(megatron_folders) < len(models) and num_ranks > 1:
        raise InputError(
            f"Hugging Face folders are evaluated in one process, not {num_ranks}: start "
            "without --ranks and torchrun, or convert the folder with `ultralong convert import`"
        )
    layout = [
        f"--{field.name.replace('_', '-')} {value}"
        for field in dataclasses.fields(ParallelConfig)
        if (value := getattr(config.parallel, field.name)) != field.default
    ]
    if layout and not megatron_folders:
        raise InputError(
            f"{', '.join(layout)}: a layout is for Megatron checkpoints, and transformers reads a "
            "Hugging Face folder in one process; leave it out, or convert the folder with "
            "`ultralong convert import`"
        )
    return models


def tokenizer_folder(argument: str) -> Path:
    """Folder with the tokenizer of a model given as ``[NAME=]FOLDER``."""
    _, folder = name_and_folder(argument)
    return folder if is_hugging_face(folder) else folder / SOURCE_FOLDER


def name_and_folder(argument: str) -> tuple[str, Path]:
    """The parts of ``[NAME=]FOLDER``; ``runs/lr=1e-5`` is a folder where there is one."""
    name, found, folder = argument.partition("=")
    if found and Path(argument).is_dir():
        if folder and Path(folder).is_dir():
            raise InputError(
                f"--load {argument} is a folder, and {folder} is another, which it calls {name}: "
                f"give {name}={Path(folder).absolute()} or {name}={argument}"
            )
        found = ""
    if not (folder if found else argument):
        raise InputError(f"--load {argument!r} names no folder: give FOLDER, or NAME=FOLDER")
    path = Path(folder if found else argument)
    if not path.is_dir():
        raise InputError(f"--load {argument}: folder {missing(path)}")
    return (name if found else path.resolve().name), path


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder is one for transformers; else it is a checkpoint of this project."""
    return (folder / "config.json").is_file()


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before it is loaded."""

    name: str
    model: ModelConfig
    max_positions: int
    """Positions that it was trained for; its rotary embedding may be made for more."""
    record: ModelRecord
    """What a result states of it."""

    @property
    def identity(self) -> dict[str, str]:
        """JSON that tells its weights from others, and how they are run: part of what decides every
        figure.
        """
        names = ("engine", "precision", "weights", "rotary")
        parts = {name: getattr(self.record, name) for name in names}
        return {"checkpoint": self.name, **parts}


def model_facts(argument: str, precision: str, *, with_digest: bool = True) -> ModelFacts:
    """Facts of a model given as ``[NAME=]FOLDER``.

    Weights are told from others by the names, sizes and times of their files, and copies of them
    by what the files hold; all of them are read for this, unless ``with_digest`` is off.

    Raises:
        InputError: the folder is missing or of no known kind.
    """
    name, folder = name_and_folder(argument)
    model, positions, weights = shape_and_weights(folder)
    engine = "megatron"
    if is_hugging_face(folder):
        engine, precision = "transformers", "fp32"
    files = files_in(weights)  # results of evaluations may stand in a folder below
    if is_hugging_face(folder):  # and beside them what decides no figure: pages, pictures
        files = [path for path in files if path.suffix in _WEIGHTS or path.name in _STATED]
    stats = [(path.name, path.stat()) for path in files]
    listing = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    stamp = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]
    digest = _digest(files, model) if with_digest else ""
    size, turned = num_parameters(model), _rotary(folder, model)
    record = ModelRecord(str(folder), engine, precision, stamp, size, digest, turned)
    return ModelFacts(name, model, positions, record)


def is_copy(argument: str, precision: str, digest: str) -> bool:
    """Whether the weights of ``[NAME=]FOLDER`` have the ``digest`` that a result states.

    All files of weights are read for it.

    Raises:
        InputError: as :func:`model_facts`.
    """
    if not digest or model_facts(argument, precision).record.digest != digest:
        return False
    _, folder = name_and_folder(argument)
    if is_hugging_face(folder):
        return True
    _, _, weights = shape_and_weights(folder)
    try:  # the digest is of what checksums.json says
        checksums.check_files(weights, checksums.read_checksums(weights), num_threads=_READERS)
    except checksums.DamagedError:
        return False
    return True


def shape_and_weights(folder: Path) -> tuple[ModelConfig, int, Path]:
    """Shape of a model, the positions that it was trained for, and the folder of its weights.

    Raises:
        InputError: the folder is of no known kind.
    """
    if is_hugging_face(folder):
        model = model_config(read_config(folder))
        return model, model.max_position_embeddings, folder
    metadata = load_metadata(folder)
    return metadata.model, metadata.trained_positions, resolve_readable(folder)[0]


def _rotary(folder: Path, model: ModelConfig) -> str:
    """How a model turns positions, which no file of weights says."""
    if not is_hugging_face(folder):
        return load_metadata(folder).rotary
    scaling = rope_block.rope_scaling(read_config(folder))
    return CheckpointMetadata(model, scaling, folder.name).rotary


def _digest(files: Sequence[Path], model: ModelConfig) -> str:
    """Hash of what files of weights hold, and of the model's shape: copies have the same.

    Of a Megatron checkpoint ``checksums.json`` says it.
    """
    of_weights = [path for path in files if path.name == checksums.FILE_NAME]
    of_weights = of_weights or [p for p in files if p.suffix in _WEIGHTS]
    if not of_weights:
        return ""
    with ThreadPoolExecutor() as pool:
        found = [*pool.map(file_sha256, of_weights), plain_values(model)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
