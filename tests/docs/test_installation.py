"""No message and no page installs this project by a name that anybody could register."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.blocks import ROOT

FOLDERS = (
    "megatron_ultralong",
    "docs",
    "docker",
    "examples",
    "benchmarks",
    "tools",
    "tests",
    ".ci",
    ".github",
)
_NAME = "megatron[-_]" + "ultralong"
BY_NAME = re.compile(
    rf"{_NAME}\[|\b(?:pip|pipx|uv)3?\b.*\b(?:install|download|add|run)\b.*(?<![\w/.-]){_NAME}(?![\w/.-])"
)


def texts() -> list[Path]:
    """Files that people or programs read commands from."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [
        path for path in found if path.stat().st_size < 2**20 and "__pycache__" not in path.parts
    ]


def by_name(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if BY_NAME.search(line)]


def test_the_project_is_installed_from_its_folder() -> None:
    """Until it is published: ``pip install -e '.[extra]'``."""
    assert len(texts()) > 300
    wrong = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in texts()
        for line in by_name(path.read_text(encoding="utf-8", errors="ignore"))
    ]
    assert not wrong, "\n".join(wrong)


def test_a_name_is_found() -> None:
    name = "megatron" + "-ultralong"
    assert by_name(f"pip install '{name}[hf]'")
    assert by_name(f"see: python -m pip install --quiet {name}")
    assert by_name(f"uv add {name}")
    assert not by_name(f"pip install -e PATH/TO/{name}\n{name} {'0.1.0'}\npip install -e '.[hf]'")
