"""One cuDNN in the process: that of PyTorch, for extensions that would load another of the system.

cuDNN is a small library that opens larger ones by name when it is first used. If a second cuDNN is
on the path of the system, an extension gets some of them from there, and the two do not fit:
undefined symbols, or graphs that cannot be built.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

# Each after those that it needs.
ORDER = (
    "graph", "engines_runtime_compiled", "engines_precompiled", "heuristic", "ops", "cnn", "adv",
)  # fmt: skip


def keep_one_cudnn() -> None:
    """Load all parts of the cuDNN that PyTorch has loaded, for all to see, before anyone else does.

    Nothing without one. ``CUDNN_HOME`` then names it: Transformer Engine looks there first.
    """
    folders = cudnn_folders()
    if len(folders) != 1:  # none to keep, or too late
        return
    folder = folders[0]
    os.environ["CUDNN_HOME"] = str(folder)
    for path in parts(folder):
        with suppress(OSError):  # if it is needed, the extension says so
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def parts(folder: Path) -> list[Path]:
    """Libraries of cuDNN in a folder, in the order in which they are loaded."""
    names = ["libcudnn.so.9", *(f"libcudnn_{name}.so.9" for name in ORDER)]
    known = [folder / name for name in names if (folder / name).exists()]
    return known + sorted({*folder.glob("libcudnn_*.so.9")} - {*known})


def cudnn_folders(maps: Path = Path("/proc/self/maps")) -> list[Path]:
    """Folders of the cuDNN libraries that this process has loaded, in the order of addresses."""
    if not maps.exists():
        return []
    found = []
    for line in maps.read_text(errors="replace").splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if path.is_absolute() and path.name.startswith("libcudnn") and ".so" in path.name:
            found.append(path.parent)
    return list(dict.fromkeys(found))
