"""Which files a model folder may name: its own."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from megatron_ultralong.program.errors import InputError

_BLOB = re.compile(r"/models--[^/]+/blobs/[0-9a-f]{40,64}$")
"""Where the cache of Hugging Face's Hub keeps a file of a model, under its hash."""


def is_plain_name(name: object) -> bool:
    """Whether ``name`` is the name of a file, and no path: no ``/``, no ``..``, no drive."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "\0" not in name
        and PurePosixPath(name).name == name == PureWindowsPath(name).name
    )


def check_inside(path: Path, folder: Path) -> None:
    """Check that ``path`` does not lead out of ``folder``, over links either.

    Without this rule whoever packs a checkpoint could have a file of the reader's machine copied
    into an export, or its text shown in a message. The folder itself may be a link. A file may be
    a link to a file in the folder, or to a blob in the cache of Hugging Face's Hub
    (``models--NAME/blobs/HASH``), where downloads of a snapshot lead.

    Raises:
        InputError: it leads elsewhere.
    """
    target = path.resolve()
    if target.is_relative_to(folder.resolve()) or _BLOB.search(target.as_posix()):
        return
    raise InputError(
        f"{path} leads out of {folder}, to {target}: a model's files are read from its own folder; "
        "put the file itself there"
    )
