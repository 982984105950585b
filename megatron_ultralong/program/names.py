"""Names of files and folders as users give them: none is empty, and ``~`` is the home folder.

A shell makes an empty word of ``"$RUN"`` where ``RUN`` is not set, and leaves ``~`` as it is behind
an ``=``. A run would train and save nothing, or save in a new folder of the name ``~``.
"""

import os
from collections.abc import Callable, Sequence

from megatron_ultralong.program.errors import InputError


def with_home(name: str) -> str:
    """``~/runs -> /home/me/runs``; of ``NAME=PATH`` the path; any other name as it is."""
    before, equals, path = name.rpartition("=")
    if path == "~" or path.startswith("~/"):
        return f"{before}{equals}{os.path.expanduser(path)}"
    return name


def whole_names(words: Sequence[str], is_name: Callable[[str], bool]) -> list[str]:
    """A command line with ``~`` in the values of flags that name something as the home folder.

    Args:
        words: of a command line.
        is_name: whether the values of a flag name something; of "", what stands behind no flag.

    Raises:
        InputError: such a value is empty.
    """
    flag, found = "", list[str]()
    for word in words:
        is_flag = word.startswith("--")
        name, equals, value = word.partition("=") if is_flag else ("", "", word)
        flag = name.replace("_", "-") or flag
        if not is_name(flag) or (is_flag and not equals):
            found.append(word)
            continue
        if not value:
            what = word if is_flag else f"{flag} {word!r}".strip()
            raise InputError(
                f"{what} is empty, and must name something: a variable of the shell that is not "
                "set makes it so; set it, or leave the flag out"
            )
        found.append(f"{name}{equals}{with_home(value)}")
    return found
