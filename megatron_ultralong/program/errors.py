"""Exceptions that end a program with a message instead of a traceback, and words of messages."""

import errno
import io
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters: ESC begins a terminal's commands
    "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"  # bidi controls, what has no width
    "\ud800-\udfff"  # halves of characters
    "\ufff9-\ufffb\U000e0000-\U000e007f]"  # annotations and tags
)
_COMMANDS = re.compile("[\x1b\x80-\x9f]")
_FILE_ENDING = re.compile(r"\.[a-z][a-z0-9]{1,7}")
"""Of ``texts/book.txt``; names of models end in ``.1-8B`` or ``.5``."""


def escaped(text: str) -> str:
    r"""``text`` as a terminal may see it: what moves, hides or colours is written out.

    Names in files of other people may be ``"a\x1b[2J"``, which would clear the screen. Newlines
    and tabs stay.
    """
    return _UNPRINTABLE.sub(lambda found: _written_out(ord(found[0])), text)


def harmless(text: str) -> str:
    """``text`` of a model: characters that begin a terminal's commands are written out.

    It may hold others that a terminal makes nothing of; a reader sees what the model wrote.
    """
    return _COMMANDS.sub(lambda found: _written_out(ord(found[0])), text)


def printable(message: str) -> str:
    """A message as a terminal may see it, see :func:`escaped`.

    Lines after the first are indented, so that no part of it passes for another message.
    """
    text = escaped(message)
    return text.rstrip("\n").replace("\n", "\n  ") + "\n" * text.endswith("\n")


def _written_out(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def counted(number: int | str, noun: str) -> str:
    """``1 document``, ``1,234 documents``, ``2 batches``; ``8 to 16`` is a number, too.

    tests/test_quantity.py fails by line for a message that has a number before a plural.
    """
    text = number if isinstance(number, str) else f"{number:,}"
    plural = "es" if noun.endswith(("s", "sh", "ch", "x")) else "s"
    return f"{text} {noun}{plural * (text != '1')}"


def named(kind: str) -> str:
    """``a file``, ``an int``: a noun with its article."""
    return f"a{'n' * (kind[:1].lower() in 'aeiou')} {kind}"


def either(numbers: Sequence[int]) -> str:
    """``1, 2 or 4``."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last


def shown(value: Any) -> str:
    """A value as a message shows it: of a long one the beginning."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 80 else text[:80] + "..."


class InputError(ValueError):
    """Input that a user can fix.

    Its message is all that the user sees: it names the values that disagree, the rule they break
    and the fix. The command line prints it without a traceback and exits with status 2.
    Mistakes of the programmer are ``assert`` statements instead.
    """


class PassingError(InputError):
    """Of a machine, a disk or a network, perhaps for a while: the same again may succeed."""


def missing(path: object) -> str:
    """``PATH does not exist``, and what to do where it looks like a name on Hugging Face's Hub.

    Or, of a file where a folder is needed, that it is one.
    """
    if Path(str(path)).is_file():
        return f"{path} is a file: give the folder that it is in"
    return f"{path} does not exist{elsewhere(path)}"


def elsewhere(path: object, flags: str = "") -> str:
    """What to do with a path of which nothing is there, and which names something elsewhere.

    ``flags``: of the command that downloads it from Hugging Face's Hub.
    """
    if "://" in str(path):
        return "; nothing is read over the network: download it, and give the file or folder"
    owner, *names = str(path).split("/")
    if len(names) != 1 or not names[0] or owner[:1] in ("", ".") or Path(owner).exists():
        return ""
    if _FILE_ENDING.fullmatch(Path(names[0]).suffix):
        return ""
    return (
        f"; a name on the Hugging Face Hub is not downloaded: `hf download {path} {flags}"
        f"--local-dir {names[0]}`, and give that folder"
    )


class RunStopped(Exception):  # noqa: N818 - not an error
    """A run that ended in order before its last iteration.

    Its message says why, and ``status`` is what its process exits with; docs/running.md lists them.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


_OF_DISKS = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODATA)
_OF_READS = (*_OF_DISKS, errno.EISDIR)
"""What a read says of the file, without its name."""
_WAYS_OUT = {
    errno.EISDIR: "it is a folder: name a file",
    errno.ENOTDIR: "a part of that path is a file: name a folder",
    errno.ELOOP: "links there lead back to themselves: name the file itself",
    errno.ENAMETOOLONG: "no file system has such a name: shorten it",
    errno.ENOENT: "it is not there, or not any more (ULTRALONG_LOG=DEBUG shows who asks for it)",
    errno.EROFS: "that disk can only be read: name a place on another one",
    **dict.fromkeys(
        _OF_DISKS,
        "the disk or its server fails: try again, or copy the file to another disk",
    ),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room on the disk"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "too many files are open: raise `ulimit -n`"),
}
_MOST_SHOWN = 200


class ClosedFileError(InputError):
    """A file or folder that this user may not open: nobody knows whether it is damaged."""


class FailingDiskError(PassingError):
    """A disk or its server failed."""


def is_failing_disk(error: OSError) -> bool:
    """Whether it says that the disk failed, and nothing of the file."""
    return error.errno in _OF_DISKS


def refused_file(error: OSError, what: str = "opened") -> InputError | None:
    """The message for ``error``: the file cannot be ``what``; None: it is of no file.

    The error of a read has no name: it is that of a file that the functions on its way have open.
    """
    name = error.filename
    if not isinstance(name, str | bytes | os.PathLike):
        name = next(_open_files(error), None) if error.errno in _OF_READS else None
    if name is None:
        return None
    path = Path(os.fsdecode(name))
    shown = str(path) if len(str(path)) <= _MOST_SHOWN else f"{str(path)[:_MOST_SHOWN]}..."
    reason = os.strerror(error.errno) if error.errno else error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return ClosedFileError(
            f"{shown} cannot be {what} ({reason}): this user needs the right to {_closed(path)}; "
            "`ls -ld` shows who has it"
        )
    way_out = _WAYS_OUT.get(error.errno or 0, "name another file or folder")
    kind = FailingDiskError if is_failing_disk(error) else InputError
    return kind(f"{shown} cannot be {what} ({reason}): {way_out}")


def _open_files(error: OSError) -> Iterator[str]:
    """Names of files in the variables of the functions that it passed, the innermost first."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in list(frame.f_locals.values()):
            if isinstance(value, io.IOBase) and isinstance(name := getattr(value, "name", 0), str):
                yield name


def _closed(path: Path) -> Path:
    """The outermost folder on the way that this user may not enter; else the path itself."""
    above = reversed(path.absolute().parents)
    return next((f for f in above if f.is_dir() and not os.access(f, os.X_OK)), path)


_MOST_SLIPS = 3
_SHORTEST_PART = 3
"""Letters of a beginning that stands for a name: ``eval -> evaluate``."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was misspelt: ``pretran -> pretrain``, ``8b-1n -> llama3.1-8b-1m``.

    One with the fewest slips in the whole of it wins, then one that begins so, then one of which
    a part is meant; of several the shortest. Upper case is lower case, ``_`` is ``-``. Another
    number is another thing, and no slip: nothing is near ``fp16``.
    """
    plain, names = _plain(name), {one: _plain(one) for one in known}
    for nearness in (_misspelling, _beginning, _part):
        found = [
            (cost, len(one), one)
            for one, its in names.items()
            if (cost := nearness(plain, its)) is not None
        ]
        if found:
            return min(found)[-1]
    return None


def not_known(what: str, name: str, known: Iterable[str], meant: str | None = None) -> str:
    """``verb 'pretran' is not known; perhaps you meant 'pretrain'; known: prepare, pretrain``.

    Args:
        what: kind of the name: ``verb``.
        name: as it was given.
        known: the names that there are, in the order to show them in.
        meant: the one that was meant, where more is known than the name; None: the nearest.
    """
    known = list(known)
    near = meant or nearest(name, known)
    suggestion = f"; perhaps you meant {near!r}" if near else ""
    return f"{what} {shown(name)} is not known{suggestion}; known: {', '.join(known)}"


def slips(name: str, other: str) -> int:
    """Letters missing, added, changed or swapped with their neighbour between two names.

    Optimal string alignment: ``rulr, ruler -> 1``, ``exprot, export -> 1``.
    """
    before, row = [0] * (len(other) + 1), list(range(len(other) + 1))
    for i, letter in enumerate(name):
        before, last, row = row, before, [i + 1]
        for j, its in enumerate(other):
            cost = min(before[j] + (letter != its), before[j + 1] + 1, row[j] + 1)
            if i and j and letter == other[j - 1] and its == name[i - 1]:
                cost = min(cost, last[j - 1] + 1)
            row.append(cost)
    return row[-1]


def _misspelling(name: str, known: str) -> int | None:
    """Slips between two names, few enough for one to be meant by the other; None: it is not."""
    most = min(_MOST_SLIPS, max(1, len(name) // 4))
    if abs(len(name) - len(known)) > most or _numbers(name) != _numbers(known):
        return None
    if len({*name} ^ {*known}) > 2 * most:
        return None  # found sooner than by counting
    # Of a short name nobody gets the first letter wrong: ``v100`` is no ``h100``.
    is_other = len(name) <= 4 and name[1:] == known[1:] and name != known
    cost = slips(name, known)
    return None if cost > most or is_other else cost


def _beginning(name: str, known: str) -> int | None:
    """0 where a name begins another; not inside a number, ``a10`` is no ``a100``."""
    is_one = known.startswith(name) and len(name) >= _SHORTEST_PART
    return 0 if is_one and not re.match(r"\d\d", known[len(name) - 1 :]) else None


def _part(name: str, known: str) -> int | None:
    """Slips to the part of a name that is meant, such as ``rulr`` of ``evaluate ruler``."""
    costs = [cost for part in _parts(known) if (cost := _misspelling(name, part)) is not None]
    return min(costs, default=None)


def _numbers(name: str) -> list[str]:
    return re.findall(r"\d+", name)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").lstrip("-")


def _parts(name: str) -> Iterable[str]:
    """Runs of the parts of a name: ``a-b-c -> a, a-b, a-b-c, b, b-c, c``."""
    cuts = [0, *(found.end() for found in re.finditer("[-. ]", name)), len(name) + 1]
    for place, start in enumerate(cuts):
        for end in cuts[place + 1 :]:
            yield name[start : end - 1]
