"""Write the lists of files that ``make install`` may take: every package, its version, its hashes.

::

    python -m venv uv && uv/bin/pip install uv
    python tools/lock_requirements.py --uv uv/bin/uv

The versions that matter are in ``requirements/constraints.txt``; here are all that they bring, for
Python 3.10 to 3.13 on any system, with the hashes of every file of a release: pip refuses another.
torch stands in none of the lists: its builds (CPU, CUDA) are of one version and many hashes, on an
index of the user's choice: it is installed by its constraint, after what it needs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "requirements"
CONSTRAINTS = FOLDER / "constraints.txt"

BUILD = ("setuptools>=77", "wheel")
"""What builds packages that are source alone, and this one."""

TORCH_NEEDS = ("filelock", "typing-extensions", "sympy", "networkx", "jinja2>=3.1.6", "fsspec")
"""Of the CPU build: with these there, pip adds nothing beside torch that has no hash."""

LISTS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "build.txt": ("3.10", (), BUILD),
    "lock.txt": ("3.10", ("test", "dev", "docs", "hf"), (*BUILD, *TORCH_NEEDS)),
    "harness.txt": ("3.11", ("harness", "benchmarks"), (*BUILD, *TORCH_NEEDS)),
}
"""Oldest Python, extras of setup.py and other packages of each list, in the order of making."""


def main() -> None:
    """Resolve and write all lists."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--uv", default="uv", help="the program (a package of that name)")
    uv = parser.parse_args().uv
    with tempfile.TemporaryDirectory() as folder:
        # a requirement that no Python meets, in place of all others: torch and what CUDA brings
        override = Path(folder, "override.txt")
        override.write_text("torch; python_version < '3'\n")
        for name, (python, extras, packages) in LISTS.items():
            wanted = Path(folder, f"{Path(name).stem}.in")
            wanted.write_text("".join(f"{package}\n" for package in packages))
            before = FOLDER / "lock.txt" if name == "harness.txt" else None
            subprocess.run(
                [
                    *(uv, "pip", "compile", "--universal", "--python-version", python),
                    *("--generate-hashes", "--no-annotate", "--no-config", "--quiet"),
                    *("--no-header", "--override", str(override)),
                    *("--constraint", str(CONSTRAINTS)),
                    *(("--constraint", str(before)) if before else ()),
                    *(part for extra in extras for part in ("--extra", extra)),
                    *((str(ROOT / "setup.py"),) if extras else ()),
                    *(str(wanted), "--output-file", str(Path(folder, name))),
                ],
                check=True,
                cwd=ROOT,
            )
            os.replace(_with_head(Path(folder, name)), FOLDER / name)


def _with_head(file: Path) -> Path:
    head = f"# Made by tools/{Path(__file__).name}; do not edit.\n"
    aside = FOLDER / f".{file.name}.partial"
    aside.write_text(head + file.read_text())
    return aside


if __name__ == "__main__":
    main()
