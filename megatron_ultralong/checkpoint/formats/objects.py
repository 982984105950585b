"""What a torch_dist checkpoint holds besides tensors: ``common.pt`` and records of objects.

They are read, by a reader that runs nothing, before Megatron-Core reads them by the same.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from megatron_ultralong.checkpoint.disk.links import check_inside
from megatron_ultralong.checkpoint.formats.pickles import (
    UnsafeError,
    check_extra_state,
    read_record,
    read_torch_file,
)
from megatron_ultralong.checkpoint.formats.torch_dist_metadata import place_of
from megatron_ultralong.program.errors import InputError

COMMON_FILE = "common.pt"
_MAX_COMMON_BYTES = 16 * 2**20
_EXTRA_STATE = "_extra_state"


def check_objects(folder: Path, metadata: Metadata) -> None:
    """Check that everything in ``folder`` that is no tensor is a plain value.

    Raises:
        InputError: a file or record of it is damaged, or would run code.
    """
    _check_common(folder / COMMON_FILE)
    places: dict[tuple[str, int, int], str] = {}
    for key, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, BytesStorageMetadata):
            place = place_of(metadata, key, None)
            if place is None:
                continue
            if getattr(place, "transform_descriptors", None):
                raise InputError(
                    f"{folder / place.relative_path}: object {key} is compressed, which "
                    "Megatron-Core never does: use a checkpoint from a source that you trust"
                )
            # empty states of many modules are one record
            places.setdefault((place.relative_path, place.offset, place.length), key)
    for (name, offset, length), key in sorted(places.items()):
        with (folder / name).open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        check_object(data, key, folder / name)


def check_object(data: bytes, key: str, path: Path) -> Any:
    """The value of object ``key``, whose record in ``path`` is ``data``.

    Raises:
        InputError: it is damaged, or would run code.
    """
    try:
        value = read_record(io.BytesIO(data))
        if _EXTRA_STATE in key:
            for state in value if isinstance(value, list) else [value]:
                check_extra_state(state)
    except UnsafeError as error:
        raise InputError(
            f"{path}: object {key} is no plain value ({error}): the checkpoint is damaged or would "
            "run code; use one from a source that you trust"
        ) from error
    return value


def _check_common(path: Path) -> None:
    if not path.is_file():  # Megatron-Core 0.19 keeps it as an object with the others
        return
    check_inside(path, path.parent)
    if path.stat().st_size > _MAX_COMMON_BYTES:
        raise InputError(f"{path} has more than {_MAX_COMMON_BYTES:,} bytes")
    try:
        value = read_torch_file(path)
    except (UnsafeError, OSError) as error:
        raise InputError(
            f"{path} is no file of plain values ({error}): the checkpoint is damaged or would run "
            "code; use one from a source that you trust"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a dict, not a {type(value).__name__}")
