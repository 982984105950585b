"""A wheel in an environment of its own: what is installed, and whether it works away from here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from .build import ROOT

PROGRAM = Path(__file__).parent / "tiny_llama.py"


class FailedError(Exception):
    """A command of the trial has failed; the message has it and what it said."""


@dataclass(frozen=True)
class Result:
    """What an installation took, and that everything ran."""

    python: str
    """3.12.1"""
    torch: str
    num_packages: int
    megabytes: int
    """Of the whole environment, 10^6 bytes."""
    seconds: float
    """Of the installation, downloads included."""

    def row(self) -> str:
        """Of the table."""
        return (
            f"| {self.python} | {self.torch} | {self.num_packages} | {self.megabytes:,} | "
            f"{self.seconds:.0f} | doctor, import, verify, export: all well |"
        )


HEAD = (
    "| Python | torch | packages | MB | seconds | outcome |\n| --- | --- | --- | --- | --- | --- |"
)


def install(python: str, wheel: Path, folder: Path, torch: str) -> tuple[Path, float]:
    """An empty environment, the wheel and that torch in it; its ``bin``, and the seconds.

    Nothing else is named: everything that the wheel requires comes at the version that pip takes.
    """
    begun = time.monotonic()
    run([python, "-m", "venv", str(folder / "env")], folder)
    binaries = folder / "env" / "bin"
    pip = [str(binaries / "python"), "-m", "pip"]
    run([*pip, "install", "--quiet", str(wheel), torch], folder)
    seconds = time.monotonic() - begun
    run([*pip, "check"], folder)
    return binaries, seconds


def install_beside(wheel: Path, folder: Path) -> Path:
    """The wheel alone, in an environment that sees this interpreter's packages; its ``bin``.

    A line of a ``.pth`` is a folder whose own ``.pth`` files are not read: an editable install of
    this project is not seen.
    """
    env = folder / "env"
    run([sys.executable, "-m", "venv", "--without-pip", str(env)], folder)
    library = Path(sysconfig.get_path("purelib", vars={"base": str(env)}))
    (library / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(env / "bin" / "python")]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], folder)
    return env / "bin"


def use(binaries: Path, folder: Path, *, short: bool = False) -> None:
    """Run the program, a conversion there and back, in an empty folder.

    Args:
        binaries: of the environment.
        folder: for what is made.
        short: ``doctor`` starts no ranks, and ``verify`` is left to import and export.

    Raises:
        FailedError: something of it failed, or what ran is not what was installed.
    """
    work = folder / "work"
    work.mkdir()
    python = str(binaries / "python")
    where = run([python, "-c", "import megatron_ultralong as m; print(m.__file__)"], work)
    if not Path(where.strip()).is_relative_to(folder / "env"):
        raise FailedError(f"what is imported is {where.strip()}, not what was installed")
    program = shutil.copy(PROGRAM, work)
    ultralong = str(binaries / "ultralong")
    run([ultralong, "--version"], work)
    run([ultralong, "doctor", *(("--no-communication",) if short else ())], work)
    run([python, program, "write", "llama"], work)
    run([ultralong, "convert", "import", "llama", "megatron"], work)
    if not short:
        run([ultralong, "convert", "verify", "llama", "megatron"], work)
    run([ultralong, "convert", "export", "megatron", "exported"], work)
    run([python, program, "compare", "llama", "exported"], work)


def measured(binaries: Path, seconds: float) -> Result:
    """What lies in an environment."""
    script = (
        "import importlib.metadata as m, platform; "
        "names = {d.metadata['Name'].lower() for d in m.distributions()}; "
        "print(platform.python_version(), m.version('torch'), len(names - {'pip'}))"
    )
    python, torch, count = run([str(binaries / "python"), "-c", script], binaries).split()
    files = [
        path for path in binaries.parent.rglob("*") if path.is_file() and not path.is_symlink()
    ]
    size = sum(path.stat().st_size for path in files)
    return Result(python, torch, int(count), round(size / 1e6), seconds)


def run(words: list[str], folder: Path) -> str:
    """Its output; away from this repository, with nothing of it on any path.

    Raises:
        FailedError: its exit status is not 0.
    """
    assert not folder.resolve().is_relative_to(ROOT)
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        words,
        cwd=folder,
        env={**kept, "PYTHONNOUSERSITE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        raise FailedError(f"exit status {done.returncode} of {' '.join(words)}\n{said}")
    return done.stdout
