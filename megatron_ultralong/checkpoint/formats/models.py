"""Models on disk, in whichever format they are, and with another rotary embedding than theirs."""

import copy
import dataclasses
from pathlib import Path

from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.kind import kind_of
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.meta import MetaFolder
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.model.yarn import describe, hf_rope_scaling
from megatron_ultralong.program.ending import tell

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
    kind = kind_of(path)
    if kind != "megatron":
        return HuggingFaceFolder(path) if kind == "huggingface" else MetaFolder(path)
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
