"""What pip may install beside what an image brings.

::

    python docker/constraints.py image                      # versions that must stay
    python docker/constraints.py constraints [VERSION]      # for pip; VERSION of Megatron-Core
    python docker/constraints.py check FILE                 # nothing of `image` has changed since

NVIDIA's image has builds of its own of torch, Transformer Engine, Apex and FlashAttention that are
on no index: pip must neither replace nor rebuild them.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMAGES_OWN = (
    "torch",
    "torchvision",
    "triton",
    "pytorch-triton",
    "transformer-engine",
    "apex",
    "flash-attn",
    "nvidia-cudnn-frontend",
    "numpy",
)
"""Distributions that an image brings, which are taken as they are."""


def own_versions() -> dict[str, str]:
    """Versions of :data:`IMAGES_OWN` that are installed here."""
    found = {}
    for name in IMAGES_OWN:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def constraints(own: dict[str, str], megatron_core: str = "") -> list[str]:
    """Lines for ``pip --constraint``: the image's own versions, ours for everything else."""
    lines = [f"{name}=={version}" for name, version in own.items()]
    for line in (ROOT / "requirements" / "constraints.txt").read_text().splitlines():
        name, _, _ = line.partition("==")
        if line.startswith("#") or normalised(name) in own:
            continue
        if normalised(name) == "megatron-core" and megatron_core:
            line = f"megatron-core=={megatron_core}"
        lines.append(line)
    return lines


def normalised(name: str) -> str:
    """A distribution's name as indexes compare it: ``Types_PyYAML`` -> ``types-pyyaml``."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def check(before: dict[str, str]) -> None:
    """Exit with a message where pip has replaced something of the image's own."""
    now = own_versions()
    changed = [
        f"{name} was {version}, is {now.get(name, 'gone')}"
        for name, version in before.items()
        if now.get(name) != version
    ]
    if changed:
        sys.exit(
            f"pip has replaced what the image brings: {'; '.join(changed)}. Take a base image "
            "whose versions the requirements accept"
        )


def main() -> None:
    """Write one of the lists, or compare."""
    command, *arguments = sys.argv[1:]
    own = own_versions()
    lines: list[str] = []
    if command == "image":
        lines = [f"{name}=={version}" for name, version in own.items()]
    elif command == "constraints":
        lines = constraints(own, *arguments)
    elif command == "check":
        before = Path(arguments[0]).read_text().split()
        check(dict(line.split("==", 1) for line in before))
    else:
        sys.exit(f"{command!r} is not known; see the docstring")
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
