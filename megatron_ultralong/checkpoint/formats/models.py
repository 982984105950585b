"""Models on disk, in whichever format they are, and with another rotary embedding than theirs."""

import copy
import dataclasses
from pathlib import Path

from megatron_ultralong.checkpoint.disk.folder import FORMAT_FILE, LATEST_FILE
from megatron_ultralong.checkpoint.formats.gguf_file import is_gguf
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.hugging_face_config import CONFIG_FILE
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.meta import PARAMS_FILE, MetaFolder
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.model.yarn import describe, hf_rope_scaling
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError

ModelFolder = HuggingFaceFolder | MetaFolder
"""Formats that other programs write."""
DiskModel = ModelFolder | MegatronCheckpoint


def open_model(
    path: Path, iteration: int | None = None, *, verify_checksums: bool = True
) -> DiskModel:
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
    if is_gguf(path):
        raise InputError(
            f"{path} is a GGUF file, which is written and compared here, not read: use the "
            "Megatron checkpoint or the Hugging Face folder that it was made of"
        )
    if path.is_dir() and not (path / LATEST_FILE).is_file() and not (path / FORMAT_FILE).is_file():
        raise InputError(
            f"{path} is not a model: it has no {CONFIG_FILE} (Hugging Face), no {PARAMS_FILE} "
            f"(Meta) and no {LATEST_FILE} (Megatron)"
        )
    checkpoint = MegatronCheckpoint(path, iteration, verify_checksums=verify_checksums)
    checkpoint.check_tensors()
    return checkpoint


def extended(source: ModelFolder, rope: RopeConfig) -> ModelFolder:
    """The weights of ``source`` for the positions and the scaling of ``rope``.

    What becomes of the rotary embedding is told, where it changes.

    Raises:
        InputError: no rope block can express it, or the positions would be too many.
    """
    scaling, positions = source.rope_scaling, source.model.max_position_embeddings
    new = copy.copy(source)
    new.rope_scaling = rope.scaling(scaling)
    most = rope.max_positions(positions, scaling)
    new.model = dataclasses.replace(source.model, max_position_embeddings=most)
    hf_rope_scaling(new.rope_scaling)
    new.model.check("--rope-scaling")
    if new.rope_scaling != scaling:
        before, after = describe(scaling, positions), describe(new.rope_scaling, most)
        tell(f"rotary: {before} -> {after}; the weights are not trained for it")
    for line in rope.warnings(positions, scaling):
        tell(line)
    return new
