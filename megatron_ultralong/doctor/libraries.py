"""Whether the libraries of ``setup.py`` are installed, new enough, and import."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Iterator

from megatron_ultralong.doctor.finding import Finding

LIBRARIES = {
    "numpy": "numpy>=1.26",
    "psutil": "psutil>=5.9",
    "safetensors": "safetensors>=0.4.5",
    "tokenizers": "tokenizers>=0.21",
    "gigatoken": "gigatoken>=0.10",
    "regex": "regex>=2024.5",
    "tiktoken": "tiktoken>=0.7",
    "sentencepiece": "sentencepiece>=0.2",
    "pyarrow": "pyarrow>=15",
    "pydantic": "pydantic>=2.7",
    "jinja2": "jinja2>=3.1",
    "yaml": "pyyaml>=6",
    "tyro": "tyro>=0.9",
    "rich": "rich>=13",
    "tensorboard": "tensorboard>=2.16",
    "matplotlib": "matplotlib>=3.8",
}
"""Module and requirement of all but torch and Megatron-Core, which have findings of their own."""


def library_findings() -> Iterator[Finding]:
    """One line for all that are well, and one for each that is not."""
    well = 0
    for module, requirement in LIBRARIES.items():
        trouble = _trouble(module, requirement)
        if trouble:
            distribution = requirement.split(">=")[0]
            yield Finding("problem", distribution, trouble, f"pip install '{requirement}'")
        else:
            well += 1
    yield Finding("ok", "libraries", f"{well} of {len(LIBRARIES)} are there and import")


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def release(version: str) -> tuple[int, ...]:
    """Numbers of a version that can be compared: ``2.10.0a0+nv25.9`` -> ``(2, 10, 0)``."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def _trouble(module: str, requirement: str) -> str:
    """What is wrong with a library; empty if nothing is."""
    distribution, _, oldest = requirement.partition(">=")
    version = installed_version(distribution)
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken library raises anything
        return f"{version or 'not installed'}: {type(error).__name__}: {error}"
    if version and release(version) < release(oldest):
        return f"{version} is older than {oldest}"
    return ""
