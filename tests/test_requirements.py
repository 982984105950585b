"""The lists of files that pip may take: whole, of the versions that are tested together."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

from docker.constraints import normalised
from tools.lock_requirements import PRODUCT

ROOT = Path(__file__).parent.parent
LISTS = ("build.txt", "lock.txt", "dev.txt", "harness.txt")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


class Locked(NamedTuple):
    requirement: Requirement
    hashes: list[str]


def read_list(name: str) -> list[Locked]:
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line)
            found.append(Locked(Requirement(requirement.strip()), [h.strip() for h in hashes]))
    return found


def versions(requirements: list[Requirement], python: str) -> dict[str, str]:
    """Pinned versions by name, of those that such a Python takes on Linux."""
    here = {
        "python_version": python, "python_full_version": f"{python}.7", "sys_platform": "linux",
        "platform_machine": "x86_64", "platform_python_implementation": "CPython",
    }  # fmt: skip
    return {
        normalised(r.name): str(r.specifier).removeprefix("==")
        for r in requirements
        if r.marker is None or r.marker.evaluate(here)
    }


def required() -> dict[str, list[Requirement]]:
    """Requirements of setup.py by extra; those of the package itself under "main"."""
    call = next(
        node.value
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    )
    given = {k.arg: k.value for k in call.keywords}
    extras = ast.literal_eval(given["extras_require"])
    groups = {"main": ast.literal_eval(given["install_requires"]), **extras}
    return {name: [Requirement(text) for text in texts] for name, texts in groups.items()}


@pytest.mark.parametrize("name", LISTS)
def test_every_file_has_its_hash_and_torch_comes_by_its_version(name: str) -> None:
    locked = read_list(name)
    assert locked
    for requirement, hashes in locked:
        assert re.fullmatch(r"==[\w.+!]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", text) for text in hashes), requirement
    names = {normalised(requirement.name) for requirement, _ in locked}
    assert not {name for name in names if re.match(r"torch$|nvidia-|triton$|cuda", name)}


@pytest.mark.parametrize("python", PYTHONS)
def test_the_versions_are_those_that_are_tested_together(python: str) -> None:
    lines = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    wanted = versions([Requirement(x) for x in lines if x and not x.startswith("#")], python)
    groups = required()
    for names, extras in (
        (("lock.txt",), ("main", *PRODUCT)),
        (("lock.txt", "dev.txt"), ("main", *PRODUCT, "test", "dev", "docs")),
        (("harness.txt",), ("main", "harness", "benchmarks")),
    ):
        if "harness.txt" in names and python == "3.10":  # its pandas and scikit-learn need 3.11
            continue
        read = [requirement for name in names for requirement, _ in read_list(name)]
        locked = versions(read, python)
        different = {k: (v, locked[k]) for k, v in wanted.items() if locked.get(k, v) != v}
        assert not different
        missing = [
            r.name
            for extra in extras
            for r in groups[extra]
            if r.name != "torch"
            and not (
                normalised(r.name) in locked and r.specifier.contains(locked[normalised(r.name)])
            )
        ]
        assert not missing


def test_what_runs_the_product_needs_nothing_of_its_development() -> None:
    """`make install` takes no linter, no test tool, no part of the site."""
    groups = required()
    needed = {normalised(r.name) for name in ("main", *PRODUCT) for r in groups[name]}
    developing = {normalised(r.name) for name in ("test", "dev", "docs") for r in groups[name]}
    installed = {normalised(requirement.name) for requirement, _ in read_list("lock.txt")}
    sympys = {"mpmath"}  # torch needs it by way of sympy
    assert installed & (developing - needed) == sympys
    tools = [name for name in installed if re.match(r"pytest|mkdocs|ruff|mypy|types-|twine", name)]
    assert not tools


@pytest.mark.parametrize("python", PYTHONS)
def test_no_list_changes_what_another_has_installed(python: str) -> None:
    """dev.txt comes after lock.txt into the same environment."""
    product, added = (
        versions([requirement for requirement, _ in read_list(name)], python)
        for name in ("lock.txt", "dev.txt")
    )
    both = {name: (product[name], added[name]) for name in product.keys() & added.keys()}
    assert all(old == new for old, new in both.values()), both


def test_the_loop_of_megatron_lm_comes_by_an_extra() -> None:
    """`make install` takes a Megatron-Core without it, and pip leaves what a requirement allows."""
    [needed] = required()["megatron-lm"]
    lines = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    [installed] = [line.split("==")[1] for line in lines if line.startswith("megatron-core==")]
    [usual] = [r for r in required()["main"] if r.name == needed.name]
    assert usual.specifier.contains(installed)
    for version in (installed, "0.16.1"):  # the wheels up to 0.16 are without it
        assert not needed.specifier.contains(version)
    for version in ("0.17.0", "0.19.2"):
        assert needed.specifier.contains(version)
        assert usual.specifier.contains(version)
    for page in ("README.md", "docs/dropin.md", "megatron_ultralong/program/optional.py"):
        assert "pip install -e '.[megatron-lm]'" in (ROOT / page).read_text()


def test_a_release_that_the_extra_takes_has_the_loop() -> None:
    [needed] = required()["megatron-lm"]
    there = importlib.metadata.version("megatron-core")
    if not needed.specifier.contains(there):
        pytest.skip(f"Megatron-Core {there} is of before")
    assert importlib.util.find_spec("megatron.training") is not None
