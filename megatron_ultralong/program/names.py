"""Names of files and folders as users give them: none is empty, and ``~`` is the home folder.

A shell makes an empty word of ``"$RUN"`` where ``RUN`` is not set, and leaves ``~`` as it is behind
an ``=``. A run would train and save nothing, or save in a new folder of the name ``~``; one of the
name ``s3:`` where a bucket is meant.
"""

import os
import re
from collections.abc import Callable, Sequence

from megatron_ultralong.program.errors import InputError


def with_home(name: str) -> str:
    """``~/runs -> /home/me/runs``; of ``NAME=PATH`` the path; any other name as it is."""
    before, equals, path = name.rpartition("=")
    if path == "~" or path.startswith("~/"):
        return f"{before}{equals}{os.path.expanduser(path)}"
    return name


_URL = re.compile(r"(?:[^=/]*=)?[A-Za-z][A-Za-z0-9+.-]*://")


def local_name(name: str) -> str:
    """The same of a name that is none of a store of objects, ``s3://bucket/run``.

    Raises:
        InputError: it is.
    """
    if _URL.match(name):
        raise InputError(
            f"{name} is a URL, and files of this machine's file systems alone are read and "
            "written: mount the store, or copy from it and to it"
        )
    return with_home(name)


def whole_names(
    words: Sequence[str], is_name: Callable[[str], bool], *, takes_urls: bool = False
) -> list[str]:
    """A command line with ``~`` in the values of flags that name something as the home folder.

    Args:
        words: of a command line.
        is_name: whether the values of a flag name something; of "", what stands behind no flag.
        takes_urls: such a value may be a URL.

    Raises:
        InputError: such a value is empty, or a URL.
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
        found.append(f"{name}{equals}{(with_home if takes_urls else local_name)(value)}")
    return found
