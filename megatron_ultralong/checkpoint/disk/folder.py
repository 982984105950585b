"""Folders of checkpoints: ``release/`` or ``iter_XXXXXXX/``, and which files a folder may name."""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final, Literal

from megatron_ultralong.program import aside, ranks
from megatron_ultralong.program.errors import InputError, missing
from megatron_ultralong.program.inner_folders import one_inside

LATEST_FILE = "latest_checkpointed_iteration.txt"
RELEASE: Final = "release"
FORMAT_FILE = "metadata.json"
_LONGEST = 20
"""Bytes of ``latest_checkpointed_iteration.txt``."""


def iteration_folder(folder: Path, iteration: int) -> Path:
    """Where iteration ``iteration`` of a run stands; 0 is ``release``: weights without a run."""
    return Path(folder) / (f"iter_{iteration:07d}" if iteration else RELEASE)


def iterations(folder: Path) -> list[int]:
    """Iterations that a folder holds, in order; 0 is ``release``."""
    there = iteration_folders(folder) if Path(folder).is_dir() else []
    return [number for number in there if _is_complete(folder, number)]


def iteration_folders(folder: Path) -> list[int]:
    """Iterations with a folder of their name, whatever is in it, in order; 0 is ``release``."""
    numbers = {named_iteration(path.name) for path in Path(folder).iterdir() if path.is_dir()}
    return sorted(number for number in numbers if number is not None)


def _is_complete(folder: Path, iteration: int) -> bool:
    return (iteration_folder(folder, iteration) / FORMAT_FILE).is_file()


def resolve(folder: str | Path, iteration: int | None = None) -> tuple[Path, int]:
    """The torch_dist folder in a checkpoint ``folder``, and its iteration.

    The latest by default. A ``release`` or ``iter_XXXXXXX`` folder may be given itself.

    Raises:
        InputError: no such folder, no checkpoint in it, or not that iteration.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"checkpoint folder {missing(folder)}")
    if (folder / FORMAT_FILE).is_file():
        return _resolve_itself(folder, iteration)
    wanted = _latest(folder) if iteration is None else iteration
    if not _is_complete(folder, wanted):
        found = iterations(folder)
        named, way_out = "", "give one of these"
        if iteration is None:
            named = f" ({LATEST_FILE} names {_name(wanted)})"
            way_out = f"write one of these into {folder / LATEST_FILE}"
        raise InputError(
            f"{folder} holds no complete iteration {_name(wanted)}; it holds "
            f"{', '.join(map(_name, found)) or 'none'}{named}: "
            f"{way_out if found else 'copy the checkpoint again'}"
        )
    return iteration_folder(folder, wanted), wanted


def resolve_readable(folder: str | Path, iteration: int | None = None) -> tuple[Path, int]:
    """As :func:`resolve`, before anything slow: the main rank opens every file that it has.

    Raises:
        InputError: see :func:`resolve`. OSError: a file cannot be opened.
    """
    path, number = resolve(folder, iteration)
    for file in aside.files_in(path) if ranks.is_main_rank() else ():
        file.open("rb").close()
    return path, number


def write_latest(folder: Path, iteration: int | Literal["release"]) -> None:
    """Name the latest checkpoint of ``folder``, in one step: readers see the old or the new."""
    aside.write_aside(folder / LATEST_FILE, f"{iteration}")


def _resolve_itself(folder: Path, iteration: int | None) -> tuple[Path, int]:
    number = named_iteration(folder.resolve().name)
    if number is None or (iteration is not None and iteration != number):
        raise InputError(
            f"{folder} is itself one torch_dist checkpoint (iteration "
            f"{'unknown' if number is None else number}), not iteration "
            f"{'latest' if iteration is None else iteration} of a run: give the folder above it"
        )
    return folder.resolve(), number


def _latest(folder: Path) -> int:
    path = folder / LATEST_FILE
    if not path.is_file():
        raise InputError(
            f"{folder} has no {LATEST_FILE}: it is not a Megatron checkpoint"
            + (
                one_inside(folder, (LATEST_FILE,))
                or "; make one with `ultralong convert import SRC DST`"
            )
        )
    text = path.read_bytes()[:_LONGEST].decode("utf-8", "replace").strip()
    if text == RELEASE:
        return 0
    if not (text.isascii() and text.isdecimal()):
        raise InputError(f"{path} must hold an iteration or {RELEASE!r}, not {text!r}")
    return int(text)


def named_iteration(name: str) -> int | None:
    """``iter_0000100 -> 100``, ``release -> 0``; None: it is no name of a checkpoint."""
    if name == RELEASE:
        return 0
    digits = name.removeprefix("iter_")
    return int(digits) if digits != name and digits.isdecimal() else None


def _name(iteration: int) -> str:
    return str(iteration) if iteration else RELEASE


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
