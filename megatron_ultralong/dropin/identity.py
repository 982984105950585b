"""``ultralong.json`` of the checkpoints that Megatron-LM reads and writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_ultralong import yarn
from megatron_ultralong.checkpoint.folder import LATEST_FILE
from megatron_ultralong.checkpoint.metadata import (
    FILE_NAME,
    SOURCE_FOLDER,
    CheckpointMetadata,
    load_metadata,
    save_metadata,
)
from megatron_ultralong.checkpoint.small_files import copy_once
from megatron_ultralong.data.manifest import Manifest
from megatron_ultralong.dropin.config import DropInConfig
from megatron_ultralong.errors import InputError


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run's weights are at its start, and what it makes of them."""

    source: CheckpointMetadata
    result: CheckpointMetadata
    folder: Path
    """Where the source's small files are."""

    def write(self, save: str | None) -> None:
        """Leave ``ultralong.json`` and the tokenizer in ``--save``, so that it can be exported.

        Every rank calls it, rank 0 writes.

        Raises:
            InputError: the folder's checkpoints are something else.
        """
        if not save:
            return
        root = Path(save)
        if (root / FILE_NAME).is_file() and (root / LATEST_FILE).is_file():
            found = load_metadata(root)
            if found != self.result:
                raise InputError(
                    f"--save {root} holds checkpoints with other metadata than this run makes: "
                    f"{found} there, {self.result} here; go on with the arguments it was begun "
                    "with, or name a new folder"
                )
        dist.barrier()  # every rank has looked
        if dist.get_rank() == 0:
            root.mkdir(parents=True, exist_ok=True)
            save_metadata(root, self.result)
            copy_once(self.folder / SOURCE_FOLDER, root / SOURCE_FOLDER)
        dist.barrier()


def find_identity(config: DropInConfig, args: Any, manifest: Manifest | None) -> Identity | None:
    """What is known of the run's weights; None where no checkpoint of it has an ``ultralong.json``.

    ``--load`` is looked at first, as Megatron-LM does, then ``--pretrained-checkpoint``.
    """
    folders = [
        Path(folder)
        for folder in (args.load, getattr(args, "pretrained_checkpoint", None))
        if folder and (Path(folder) / FILE_NAME).is_file()
    ]
    if not folders:
        return None
    source = load_metadata(folders[0])
    rope = config.rope()
    scaling = rope.scaling(source.rope_scaling)
    yarn.hf_rope_scaling(scaling)  # what could not be exported is not trained for hours
    positions = source.model.max_position_embeddings
    if scaling != source.rope_scaling:  # else the source is extended already
        positions = rope.max_positions(positions, source.rope_scaling)
    result = dataclasses.replace(
        source,
        model=dataclasses.replace(source.model, max_position_embeddings=positions),
        rope_scaling=scaling,
        separator_ids=tuple(manifest.separator_ids) if manifest else source.separator_ids,
        angle_precision=config.angle_precision,
    )
    return Identity(source, result.after_training(source, args.seq_length), folders[0])
