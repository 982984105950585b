"""Exceptions that end a program with a message instead of a traceback."""

import re
from pathlib import Path

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters: ESC begins a terminal's commands
    "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"  # bidi controls, what has no width
    "\ud800-\udfff"  # halves of characters
    "\ufff9-\ufffb\U000e0000-\U000e007f]"  # annotations and tags
)
_COMMANDS = re.compile("[\x1b\x80-\x9f]")


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
