"""Build wheel and sdist, check both, install the wheel where nothing else is, and use it there.

::

    python tools/try_wheel.py                     # make wheel: Python 3.10 to 3.13
    python tools/try_wheel.py --python 3.12       # this one
    python tools/try_wheel.py --beside            # no download: beside this interpreter's packages
    python tools/try_wheel.py --keep dist         # leave both files there

Each environment is empty except for the wheel, torch and what they require, at the versions that
pip takes; `ultralong doctor` and a conversion of a tiny Llama there and back run in an empty
folder. A
Python that is not there is said to be. torch without a GPU on Linux: `--index-url` of pip's
configuration, or `PIP_INDEX_URL`; a build that is on no disk may bring CUDA, 3 GB.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from version_matrix.environment import NotInstalledError, find_python
from wheel_trial.build import ROOT, build, differences
from wheel_trial.trial import HEAD, FailedError, install, install_beside, measured, use

PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def main() -> None:
    """Exit status 1 where something failed, or a Python is not there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", action="append", help=f"of {', '.join(PYTHONS)}; all")
    parser.add_argument("--interpreter", action="append", default=[], help="one to try first")
    parser.add_argument("--torch", default=_torch(), help="requirement (default: %(default)s)")
    parser.add_argument("--beside", action="store_true", help="this interpreter, its packages")
    parser.add_argument("--keep", type=Path, help="folder for wheel and sdist")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        sdist, wheel = build(Path(made))
        if wrong := differences(sdist, wheel):
            sys.exit("\n".join(wrong))
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            for file in (sdist, wheel):
                shutil.copy(file, arguments.keep)
        if arguments.beside:
            with tempfile.TemporaryDirectory() as folder:
                use(install_beside(wheel, Path(folder)), Path(folder), short=True)
            print(f"{wheel.name}: doctor, import, export: all well")
            return
        if not all([_tried(python, wheel, arguments) for python in arguments.python or PYTHONS]):
            sys.exit(1)


def _tried(python: str, wheel: Path, arguments: argparse.Namespace) -> bool:
    """Whether all is well with one Python; says so."""
    try:
        interpreter = find_python(python, arguments.interpreter)
    except NotInstalledError as error:
        print(f"{python}: not run: {error}", flush=True)
        return False
    with tempfile.TemporaryDirectory() as folder:
        try:
            binaries, seconds = install(interpreter, wheel, Path(folder), arguments.torch)
            use(binaries, Path(folder))
        except FailedError as error:
            print(f"{python}: {error}", flush=True)
            return False
        print(f"{HEAD}\n{measured(binaries, seconds).row()}", flush=True)
    return True


def _torch() -> str:
    """The line of the versions that are tested together."""
    lines = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))


if __name__ == "__main__":
    main()
