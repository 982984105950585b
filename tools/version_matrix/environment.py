"""The environment of a leg: a Python, and what is installed into it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .leg import Leg

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / ".venv-matrix"
_PROBE = "import sys; print('%d.%d' % sys.version_info[:2]); print(sys.executable)"


class NotInstalledError(Exception):
    """A leg cannot be run here; the message says why."""


def install(leg: Leg, pythons: list[str]) -> Path:
    """The leg's interpreter, with this project, its tests' needs and the release installed.

    Args:
        leg: which versions.
        pythons: interpreters to try before those on the path.

    Raises:
        NotInstalledError: there is no such Python, or pip has failed.
    """
    python = FOLDER / leg.python / "bin" / "python"
    try:
        if not python.exists():
            found = find_python(leg.python, pythons)
            subprocess.run([found, "-m", "venv", FOLDER / leg.python], check=True)
        listing = [str(python), str(ROOT / "docker" / "constraints.py")]
        listing += ["constraints", leg.megatron_core]
        lines = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
        constraints = FOLDER / f"constraints-{leg.name}.txt"
        constraints.write_text(lines)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
        # One release takes another's place: no search path has to put one before the other.
        subprocess.run([*pip, "--editable", f"{ROOT}[test]"], check=True)
    except subprocess.CalledProcessError as error:
        words = " ".join(str(word) for word in error.cmd)
        raise NotInstalledError(f"exit status {error.returncode} of: {words}") from error
    return python


def find_python(version: str, pythons: list[str]) -> str:
    """Path of an interpreter of that version: the first that answers with it.

    Raises:
        NotInstalledError: none does.
    """
    tried = [*pythons, f"python{version}", "python3", sys.executable]
    # pyenv's programs answer only for a version that is selected.
    environment = {**os.environ, "PYENV_VERSION": version}
    for candidate in tried:
        try:
            done = subprocess.run(
                [Path(candidate).expanduser(), "-c", _PROBE],
                capture_output=True,
                text=True,
                check=True,
                env=environment,
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        found, executable = done.stdout.split("\n")[:2]
        if found == version:
            return executable
    raise NotInstalledError(
        f"none of {', '.join(tried)} is a Python {version}: name one by --python "
        "(make test-matrix MATRIX_PYTHON=...)"
    )
