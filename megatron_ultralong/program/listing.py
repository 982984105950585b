"""Files of folders, by name; a folder that this user may not list is an error.

``glob`` passes over such a folder as if nothing were in it.
"""

import fnmatch
import os
from pathlib import Path


def files_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Files of ``folder`` whose names fit, ``*.jinja``; none where it is not there.

    Raises:
        OSError: it cannot be listed.
    """
    names = os.listdir(folder) if folder.is_dir() else []
    found = (folder / name for name in sorted(fnmatch.filter(names, pattern)))
    return [path for path in found if path.is_file()]


def files_below(folder: Path) -> list[Path]:
    """All files of ``folder`` and of the folders in it, in order; none where it is not there.

    Raises:
        OSError: one of them cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    walk = os.walk(folder, onerror=refuse) if folder.is_dir() else ()
    found = (Path(place) / name for place, _, names in walk for name in names)
    return sorted(path for path in found if path.is_file())
