"""Write the lists of files that make may install: every package, its version, its hashes.

::

    python -m venv uv && uv/bin/pip install uv
    python tools/lock_requirements.py --uv uv/bin/uv

The versions that matter are in ``requirements/constraints.txt``; here are all that they bring, for
Python 3.10 to 3.13 on any system, with the hashes of every file of a release: pip refuses another.
``lock.txt`` is what runs the product (``make install``), ``dev.txt`` what its tests, linters and
site need besides (``make dev``), ``harness.txt`` an environment of its own (``make harness``).
What a list has already stays as it is; ``--upgrade`` takes the newest of what is not constrained.
torch stands in none of the lists: its builds (CPU, CUDA) are of one version and many hashes, on an
index of the user's choice: it is installed by its constraint, after what it needs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "requirements"
CONSTRAINTS = FOLDER / "constraints.txt"
HEAD = f"# Made by tools/{Path(__file__).name}; do not edit.\n"

BUILD = ("setuptools>=77", "wheel")
"""What builds packages that are source alone, and this one."""

TORCH_NEEDS = ("filelock", "typing-extensions", "sympy", "networkx", "jinja2>=3.1.6", "fsspec")
"""Of the CPU build: with these there, pip adds nothing beside torch that has no hash."""


class List(NamedTuple):
    """One file of requirements."""

    python: str
    """The oldest."""
    extras: tuple[str, ...]
    """Of setup.py; none is a requirement of setup.py at all."""
    packages: tuple[str, ...]
    """Others."""
    beside: tuple[str, ...] = ()
    """Lists made before, whose versions hold."""
    without: tuple[str, ...] = ()
    """Lists that are installed before, whose packages are left out."""


PRODUCT = ("hf", "gguf", "benchmarks")
"""Extras that ``make install`` takes: no verb of the command line lacks anything."""

LISTS = {
    "build.txt": List("3.10", (), BUILD),
    "lock.txt": List("3.10", PRODUCT, (*BUILD, *TORCH_NEEDS)),
    "dev.txt": List(
        "3.10",
        ("test", "dev", "docs", *PRODUCT),
        (*BUILD, *TORCH_NEEDS),
        beside=("lock.txt",),
        without=("lock.txt",),
    ),
    "harness.txt": List(
        "3.11", ("harness", "benchmarks"), (*BUILD, *TORCH_NEEDS), beside=("lock.txt", "dev.txt")
    ),
}
"""In the order of making."""


def main() -> None:
    """Resolve and write all lists."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--uv", default="uv", help="the program (a package of that name)")
    parser.add_argument("--upgrade", action="store_true", help="forget what the lists have")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # a requirement that no Python meets, instead of all others: torch and what CUDA brings
        override = Path(folder, "override.txt")
        override.write_text("torch; python_version < '3'\n")
        for name, its in LISTS.items():
            made = Path(folder, name)
            if not arguments.upgrade and (FOLDER / name).exists():
                shutil.copy(FOLDER / name, made)  # uv keeps the versions of a list that is there
            wanted = Path(folder, f"{Path(name).stem}.in")
            wanted.write_text("".join(f"{package}\n" for package in its.packages))
            held = [CONSTRAINTS, *(FOLDER / other for other in its.beside)]
            subprocess.run(
                [
                    *(arguments.uv, "pip", "compile", "--universal"),
                    *("--python-version", its.python),
                    *("--generate-hashes", "--no-annotate", "--no-config", "--quiet"),
                    *("--no-header", "--override", str(override)),
                    *(part for file in held for part in ("--constraint", str(file))),
                    *(part for extra in its.extras for part in ("--extra", extra)),
                    *((str(ROOT / "setup.py"),) if its.extras else ()),
                    *(str(wanted), "--output-file", str(made)),
                ],
                check=True,
                cwd=ROOT,
            )
            there = {entry for other in its.without for entry in entries(FOLDER / other)}
            kept = [entry for entry in entries(made) if entry not in there]
            aside = FOLDER / f".{name}.partial"
            aside.write_text(HEAD + "".join(kept))
            os.replace(aside, FOLDER / name)


def entries(file: Path) -> list[str]:
    """Each package of a list, with its hashes: the lines from its name on."""
    lines = [line for line in file.read_text().splitlines(True) if not line.startswith("#")]
    return re.findall(r"^\S.*\n(?:\s+.*\n)*", "".join(lines), flags=re.MULTILINE)


if __name__ == "__main__":
    main()
