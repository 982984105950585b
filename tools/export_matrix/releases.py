"""Environments of the releases of transformers that exports are tried with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.convert.report import TRIED

_TOKENIZERS = {
    "4.43.4": "0.19.1",
    "4.44.2": "0.19.1",
    "4.45.2": "0.20.3",
    "4.48.3": "0.21.4",
    "4.50.3": "0.21.4",
    "4.51.3": "0.21.4",
    "4.52.4": "0.21.4",
    "4.55.4": "0.21.4",
    "4.56.2": "0.22.2",
    "4.57.6": "0.22.2",
    "5.0.0": "0.22.2",
    "5.20.2": "0.23.3",
    "5.23.0": "0.23.3",
}
assert tuple(_TOKENIZERS) == TRIED, "try what reports say is tried"
_REQUESTS = ("requests", "urllib3", "charset-normalizer", "certifi", "idna")
"""What huggingface_hub needed before 1.0 and does not any more."""
_PROBE = Path(__file__).parent / "probe.py"


def packages(release: str) -> list[str]:
    """What pip is asked for: all else a release needs is as in this environment."""
    major = int(release.split(".")[0])
    hub = ["huggingface_hub==1.3.2"] if major > 4 else ["huggingface_hub==0.36.0", *_REQUESTS]
    if release in TRIED[-2:]:
        hub = ["huggingface_hub==2.4.0"]
    return [f"transformers=={release}", f"tokenizers=={_TOKENIZERS[release]}", *hub]


def install(folder: Path, release: str) -> Path:
    """The interpreter of an environment for ``release`` below ``folder``, made once.

    torch and the other packages are this environment's: those of the new one stand before them.

    Raises:
        subprocess.CalledProcessError: pip has failed.
    """
    home = folder / f"transformers-{release}"
    python = home / "bin" / "python"
    done = home / "installed.json"
    if done.is_file() and json.loads(done.read_text()) == packages(release):
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", home], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    pip += ["--quiet", "--no-deps", "--no-compile"]
    # of transformers' 2,000 files few are ever imported: the others are not compiled
    subprocess.run([*pip, *packages(release)], check=True)
    paths = "import sysconfig; print(sysconfig.get_path('purelib'))"
    asked = subprocess.run([python, "-c", paths], check=True, capture_output=True, text=True)
    Path(asked.stdout.strip(), "zz-here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done.write_text(json.dumps(packages(release)))
    return python


def probe(python: Path, exports: Sequence[Path], output: Path) -> dict[str, Any]:
    """What a release makes of exports: see ``probe.py``; logits are in ``output``, by export.

    Raises:
        subprocess.CalledProcessError: the release itself could not be imported.
    """
    output.mkdir(parents=True)
    left_out = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    environment = {
        **{name: value for name, value in os.environ.items() if name not in left_out},
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    subprocess.run(
        [python, _PROBE, output, *exports], check=True, env=environment, cwd=output, timeout=1200
    )
    found: dict[str, Any] = json.loads((output / "found.json").read_text())
    return found
