"""The package as others install it: what is in the wheel, and that it works with nothing else."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from setuptools import find_packages

from docker.constraints import normalised
from tests.patience import patience
from tests.test_requirements import required
from tools.lock_requirements import PRODUCT

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "megatron_ultralong"
BY_OTHERS = {
    "transformer_engine": "a build of its own",
    "megatron": "megatron-core, or the user's own Megatron-LM",
    "pydantic_core": "comes with pydantic",
    "triton": "comes with builds of torch for GPUs; nothing needs it",
}
"""Modules that are imported under a name that no requirement has."""


def keyword(name: str) -> object:
    """What setup.py gives for it."""
    call = next(
        node.value
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    )
    (value,) = (given.value for given in call.keywords if given.arg == name)
    return ast.literal_eval(value)


def test_every_file_of_the_package_is_in_the_wheel() -> None:
    """Python files of real packages, and what ``package_data`` names."""
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    packages = find_packages(str(ROOT), include=["megatron_ultralong", "megatron_ultralong.*"])
    folders = {ROOT.joinpath(*name.split(".")) for name in packages}
    data = {PACKAGE / name for name in keyword("package_data")["megatron_ultralong"]}  # type: ignore[index]
    lost = {
        path
        for path in files
        if path not in data and (path.suffix != ".py" or path.parent not in folders)
    }
    assert not lost, "name it in package_data of setup.py, or add an __init__.py"
    assert data <= files


def imported(folder: Path = PACKAGE) -> Iterator[tuple[str, Path]]:
    """Top-level modules that a folder's files import, anywhere in them."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name.split(".")[0], path) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                yield node.module.split(".")[0], path


def test_what_the_package_imports_comes_with_it() -> None:
    """Nothing of the checkout (tests, tools), and nothing that only development installs."""
    assert not lacking(PACKAGE, ("main", *PRODUCT, "wandb", "te"))


def test_what_examples_import_comes_with_make_install() -> None:
    """`make demo`, `make mock` and `make smollm2` need no tools of development."""
    engines = {"vllm", "xllamacpp"}  # what serves an answer, where it is installed
    found = lacking(ROOT / "examples", ("main", *PRODUCT))
    harness = {"datasets", "evaluate"}  # what reads examples/harness/code_eval brings them
    assert not {text for text in found if text.split(": ")[1] not in engines | harness}


def lacking(folder: Path, extras: tuple[str, ...]) -> set[str]:
    """Imports of a folder's files that these requirements do not bring."""
    groups = required()
    named = {normalised(r.name) for extra in extras for r in groups[extra]}
    brings = importlib.metadata.packages_distributions()
    own = {path.stem for path in folder.rglob("*.py")}  # scripts beside each other
    return {
        f"{path.relative_to(ROOT)}: {module}"
        for module, path in imported(folder)
        if module not in sys.stdlib_module_names
        and module not in {"megatron_ultralong", *BY_OTHERS}
        and not (folder != PACKAGE and module in own)
        and not named & {module, *(normalised(name) for name in brings.get(module, ()))}
    }


@pytest.mark.faults
def test_a_wheel_works_away_from_the_checkout(tmp_path: Path) -> None:
    """Built, checked, and used beside this environment's packages; `make wheel` with none."""
    words = [sys.executable, "tools/try_wheel.py", "--beside", "--keep", str(tmp_path)]
    home = "https://example.org/group/name"
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, "REPOSITORY_URL": home},
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(300),
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "all well" in done.stdout
    assert {path.suffix for path in tmp_path.iterdir()} == {".whl", ".gz"}
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        shown = archive.read(name).decode()
    assert f"Project-URL: Source, {home}" in shown
    assert f"({home}/blob/main/docs/quick_start.md)" in shown
    assert f"({home}/raw/main/docs/demo/loss.png)" in shown
    assert not re.search(r"\]\((?!https?:|#)", shown)
