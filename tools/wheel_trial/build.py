"""sdist and wheel of the files that git knows, and a look at both."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def build(folder: Path) -> tuple[Path, Path]:
    """Both under ``folder/dist``: the sdist, and a wheel that is made from it.

    Nothing that lies about in the work tree can get in, and nothing that the sdist lacks can be in
    the wheel. Setuptools are those of this interpreter: nothing is downloaded.

    Raises:
        subprocess.CalledProcessError: it cannot be built, or twine has something against it.
    """
    source = copy_tracked(folder / "source")
    made = folder / "dist"
    words = ["build", "--no-isolation", "--outdir", str(made), str(source)]
    subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)
    (sdist,) = made.glob("*.tar.gz")
    (wheel,) = made.glob("*.whl")
    check = [sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)]
    subprocess.run(check, check=True)
    return sdist, wheel


def copy_tracked(folder: Path) -> Path:
    """The files of the work tree that git knows, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # not removed since
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def differences(sdist: Path, wheel: Path) -> list[str]:
    """Files of the package that either lacks, and what the wheel has besides."""
    package = "megatron_ultralong/"
    tracked = subprocess.run(
        ["git", "ls-files", package], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    wanted = {name for name in tracked if (ROOT / name).is_file()}
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    return [
        *(f"not in the sdist: {name}" for name in sorted(wanted - set(names))),
        *(f"not in the wheel: {name}" for name in sorted(wanted - inside)),
        *(f"in the wheel alone: {name}" for name in sorted(inside - wanted)),
    ]
