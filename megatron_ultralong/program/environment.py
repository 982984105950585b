"""What a program is started in, here and by what is started here: variables, current folder."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping

from megatron_ultralong.program.errors import InputError


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Inside, the environment has these values, and what it had before behind it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def path_of_modules() -> dict[str, str]:
    """What a Python that is started here needs to import its modules from where this one does.

    ``python -m`` and ``python -c`` look in the current folder first, where a ``random.py`` may lie;
    the command ``ultralong`` does not. Pythons from 3.11 on read the variable.
    """
    is_searched = bool({"", os.getcwd()} & set(sys.path))
    return {} if is_searched else {"PYTHONSAFEPATH": "1"}


def check_current_folder() -> None:
    """Raise InputError where it was removed: libraries end without a word that helps."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise InputError(
            "the current folder is not there any more: `cd` to one that is, or to the new one of "
            "that name"
        ) from error
