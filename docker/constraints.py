"""What pip may install beside what an image brings.

::

    python docker/constraints.py image                      # versions that must stay
    python docker/constraints.py constraints [VERSION]      # for pip; VERSION of Megatron-Core
    python docker/constraints.py requirements [EXTRA...]    # of setup.py, with its extras
    python docker/constraints.py check FILE                 # nothing of `image` has changed since
    python docker/constraints.py size [EXTRA...]            # MB of those and all they need

NVIDIA's image has builds of its own of torch, Transformer Engine, Apex and FlashAttention that are
on no index: pip must neither replace nor rebuild them.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from pathlib import Path
from typing import TypeGuard

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


def requirements(*extras: str) -> list[str]:
    """What setup.py requires, with its extras, read without running it: it needs the README."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (call,) = (node for node in ast.walk(tree) if _is_call_of(node, "setup"))
    values = {word.arg: word.value for word in call.keywords}
    found: list[str] = ast.literal_eval(values["install_requires"])
    of_extras: dict[str, list[str]] = ast.literal_eval(values["extras_require"])
    for extra in extras:
        found += of_extras[extra]
    return found


def sizes(*extras: str) -> dict[str, int]:
    """Bytes of every distribution that the requirements bring, as it is installed here."""
    from packaging.requirements import Requirement  # an image has it once pip has run

    found: dict[str, int] = {}
    waiting = [Requirement(line) for line in requirements(*extras)]
    while waiting:
        requirement = waiting.pop()
        name = normalised(requirement.name)
        if name in found:
            continue
        files = importlib.metadata.files(name) or []
        found[name] = sum(file.size or 0 for file in files)
        for line in importlib.metadata.requires(name) or []:
            its = Requirement(line)
            wanted = [{"extra": extra} for extra in ("", *requirement.extras)]
            if its.marker is None or any(its.marker.evaluate(each) for each in wanted):
                waiting.append(its)
    return found


def _is_call_of(node: ast.AST, name: str) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


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
    elif command == "requirements":
        lines = requirements(*arguments)
    elif command == "size":
        found = sorted(sizes(*arguments).items(), key=lambda pair: -pair[1])
        lines = [f"{size / 1e6:8.1f} {name}" for name, size in found]
        own = sum(size for name, size in found if name in IMAGES_OWN)
        total = sum(size for _, size in found)
        lines.append(f"{total / 1e6:8.1f} in all; {(total - own) / 1e6:.1f} beside an image's own")
    elif command == "check":
        before = Path(arguments[0]).read_text().split()
        check(dict(line.split("==", 1) for line in before))
    else:
        sys.exit(f"{command!r} is not known; see the docstring")
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
