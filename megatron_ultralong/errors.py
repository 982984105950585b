"""Exceptions that end a program with a message instead of a traceback."""

from pathlib import Path


class InputError(ValueError):
    """Input that a user can mend.

    Its message is all that the user sees: it names the values that disagree, the rule they break
    and the way out. The command line prints it without a traceback and exits with status 2.
    Mistakes of the programmer are ``assert`` statements instead.
    """


def missing(path: object) -> str:
    """``PATH does not exist``, and what to do where it looks like a name on Hugging Face's Hub."""
    text = f"{path} does not exist"
    parts = str(path).split("/")
    if (
        len(parts) == 2
        and all(parts)
        and not parts[0].startswith(".")
        and not Path(parts[0]).exists()
    ):
        text += (
            f"; a name on the Hugging Face Hub is not downloaded: `hf download {path} --local-dir "
            f"{parts[1]}`, and give that folder"
        )
    return text


class RunStopped(Exception):  # noqa: N818 - not an error
    """A run that ended in order before its last iteration.

    Its message says why, and ``status`` is what its process exits with; docs/running.md lists them.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
