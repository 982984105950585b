"""The folder that a verb writes: it stands under its name only when it is whole.

``NAME`` is made in ``.NAME.partial`` beside it, which has one owner
(:mod:`megatron_ultralong.program.owner`) and gets its name at the end. Its ``work.json`` says what
is made there: the same command continues from the parts that a killed one has finished, with a
line that says so; another command is refused. An error leaves nothing, except for finished parts
that the next try needs; an interrupt leaves what a kill leaves.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.program.aside import partial_path, remove, write_aside
from megatron_ultralong.program.difference import value_difference
from megatron_ultralong.program.ending import PROGRAM, tell
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_json
from megatron_ultralong.program.owner import Owner, take
from megatron_ultralong.program.owner_record import is_owner_file
from megatron_ultralong.program.quantity import different, quantity

WORK_FILE = "work.json"
RECORDS_FILE = "finished.jsonl"
"""Records of finished parts, see :mod:`megatron_ultralong.program.journal`."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_OF_A_DISK = (*_FULL, errno.EIO, errno.ESTALE)
"""What a write or ``fsync`` says without a name of a file."""
_MARGIN = 16 * 2**20
"""Bytes for small files and headers, over what is announced."""


Words = Callable[[str, Any, Any], tuple[str, str, str] | None]
"""For people, what a part is called, what it was and what it is, by its key and both values; None:
it is told as a JSON value is."""


def check_output(output: str | Path, flag: str = "--output") -> None:
    """Check, before the work starts, that the folder ``output`` can be made.

    Raises:
        InputError: it holds something, is a file, or cannot be renamed to.
    """
    output = Path(output)
    if os.path.ismount(output):
        raise InputError(
            f"{flag} {output} is where a disk is mounted, and no folder can be renamed to it: name "
            "one in it"
        )
    if output.is_dir():
        names = sorted(os.listdir(output))
        if not names:
            return
        what = f"holds {len(names)} entries, {names[0]} among them"
    elif output.exists():
        what = "is a file"
    else:
        return
    raise InputError(
        f"{flag} {output} {what}: existing files are not overwritten; "
        "name a new folder, or empty this one"
    )


class OutputFolder:
    """``.NAME.partial``, in which ``NAME`` is made; see :func:`output_folder`."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self.path = path
        self.result = path
        """What gets the final name: this folder, or one in it."""
        self.has_parts = False
        """Something in it is finished, which the next try need not do again."""
        self.keep = False
        """Leave finished parts there after an error too."""
        self.owner = owner

    def new_folder(self, name: str) -> Path:
        """An empty folder in it; what earlier processes left is removed.

        Its name is this owner's: a process that was stopped and taken over writes into none of it.
        """
        for left in self.path.glob(f"{name}-*"):
            remove(left)
        folder = self.path / f"{name}-{self.owner.record.number}"
        folder.mkdir()
        return folder

    def go_on(self, num_parts: int, what: str) -> None:
        """Say that finished parts are taken up, if there are any."""
        self.has_parts = num_parts > 0
        if num_parts:
            tell(f"{PROGRAM}: continuing from {num_parts:,} finished {what} in {self.path}")

    def begin(
        self, work: Mapping[str, Any], flag: str, *, resumes: bool, words: Words | None = None
    ) -> None:
        """Say what is made here, or see that it is the same.

        Raises:
            InputError: it is something else.
        """
        file = self.path / WORK_FILE
        if file.is_file():
            found = read_json(file, hint=f"remove {self.path} to begin again")
            for key in dict.fromkeys((*work, *found)):
                recorded, wanted = found.get(key), work.get(key)
                if json.dumps(recorded, sort_keys=True) != json.dumps(wanted, sort_keys=True):
                    told = words(key, recorded, wanted) if words and key in found else None
                    name, before, now = told or value_difference(key, recorded, wanted)
                    raise InputError(
                        f"{self.path} was started by another command: its {name} was {before}, "
                        f"now it is {now}; repeat the first one to continue, remove that "
                        f"folder, or name another {flag}"
                    )
        else:
            write_aside(file, json.dumps(work, indent=1) + "\n")
        for path in self.path.iterdir():
            if path.name != WORK_FILE and not is_owner_file(path):
                self.has_parts = resumes
                if not resumes:
                    remove(path)

    def finish(self, final: Path) -> None:
        """Give the result its name.

        Raises:
            InputError: another process has taken the work over.
        """
        if self.result == self.path:
            self.owner.move_to(final)
            for name in (WORK_FILE, RECORDS_FILE):
                (final / name).unlink(missing_ok=True)
        else:
            self.owner.check_mine()
            os.replace(self.result, final)
            self.owner.remove_folder()

    def end(self, error: BaseException) -> None:
        """Remove it after ``error``, except for what the next try continues from."""
        if not self.has_parts or (isinstance(error, Exception) and not self.keep):
            self.owner.remove_folder()
        elif isinstance(error, KeyboardInterrupt):
            tell(f"{PROGRAM}: what is finished stays in {self.path}: the same command continues it")


@contextlib.contextmanager
def output_folder(
    output: str | Path,
    verb: str,
    work: Mapping[str, Any] | None = None,
    *,
    flag: str = "--output",
    num_bytes: int = 0,
    words: Words | None = None,
) -> Iterator[OutputFolder]:
    """A folder to write in, which gets the name ``output`` when the block ends without an error.

    Args:
        output: the folder to be; an empty one may stand there.
        verb: what makes it: ``prepare``.
        work: JSON values that decide on the parts that are finished one by one; what an earlier
            process of the same ones left is there. None: there are no such parts.
        flag: by which users name ``output``.
        num_bytes: to be written.
        words: how a part of ``work`` that differs is told; default: as JSON values are.

    Raises:
        InputError: ``output`` holds something, another process makes it, another command began
            it, or the disk refuses or has too little room.
    """
    check_output(output, flag)
    final = Path(os.path.realpath(output))
    partial = partial_path(final)
    name = f"{flag} {output}"
    made = [folder for folder in partial.parents if not folder.exists()]
    try:
        with writable(partial, name, num_bytes), contextlib.ExitStack() as stack:
            partial.mkdir(parents=True, exist_ok=True)
            _check_ours(partial, flag)
            owner = take(partial, verb, name)
            stack.callback(owner.release)
            folder = OutputFolder(partial, owner)
            what = {"verb": verb, **(work or {})}
            folder.begin(what, flag, resumes=work is not None, words=words)
            try:
                folder.keep = True  # nothing was done to them yet
                check_output(output, flag)  # another may have finished while this one waited
                if num_bytes:
                    taken = sum(path.stat().st_blocks * 512 for path in partial.rglob("*"))
                    check_free(partial, num_bytes + _MARGIN - taken, name)
                folder.keep = False
                yield folder
                folder.finish(final)
            except BaseException as error:
                folder.end(error)
                raise
    finally:
        with contextlib.suppress(OSError):
            for parent in made:  # the inner ones first, up to one in which anything stands
                parent.rmdir()


@contextlib.contextmanager
def writable(folder: Path, name: str, num_bytes: int = 0) -> Iterator[None]:
    """Say so where the disk refuses what is written to ``folder`` inside the block.

    ``folder``: errors of other places are left as they are. ``name`` is that by which users know
    it: ``--save runs/1m``. ``num_bytes`` are to be written; 0: not known.

    Raises:
        InputError: the disk refuses; the message has its reason and the fix.
    """
    try:
        yield
    except (OSError, RuntimeError) as raised:
        error = of_the_system(raised)
        if error is None or not _is_about(error, folder.absolute()):
            raise
        room = f" for {quantity(num_bytes, 'B')}" if num_bytes else ""
        way_out = f"make room on the disk{room}" if error.errno in _FULL else "make it writable"
        raise InputError(
            f"{name} cannot be written: {error}; {way_out}, or name another {name.split()[0]}"
        ) from error


def check_free(folder: Path, num_bytes: int, name: str) -> None:
    """Check the disk on which ``folder`` is, or will be.

    ``name`` is that by which users know the folder: ``--save runs/1m``.

    Raises:
        InputError: less than ``num_bytes`` are free there.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        has, needed = different(free, num_bytes, "B")
        raise InputError(
            f"{name}: the disk has {has} free, {needed} are needed: make room, or write to another "
            "disk"
        )


def _check_ours(partial: Path, flag: str) -> None:
    """Raise InputError, before anything is written, where the folder is another program's."""
    own_names = (partial_path(Path(WORK_FILE)).name, WORK_FILE)
    others = [p.name for p in partial.iterdir() if not is_owner_file(p) and p.name not in own_names]
    if others and not (partial / WORK_FILE).is_file():
        raise InputError(
            f"{partial} holds {others[0]} and no {WORK_FILE}: it is not work of this version; "
            f"remove it, or name another {flag}"
        )


def of_the_system(error: BaseException | None) -> OSError | None:
    """The error of the system behind ``error``: torch's writers of files raise another over it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _is_about(error: OSError, partial: Path) -> bool:
    """Whether an error is of the output; those of what is read are its readers' own."""
    if not isinstance(error.filename, str):
        return error.errno in _OF_A_DISK
    path = Path(os.path.abspath(error.filename))
    return path.is_relative_to(partial) or partial.is_relative_to(path)
