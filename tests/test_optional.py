"""Packages that only some verbs need: one door, one message where they are not there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from megatron_ultralong import cli
from megatron_ultralong.program import optional
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.optional import (
    REQUIREMENTS,
    check_optional_package,
    installed_version,
    optional_package,
)
from tests.evaluation.harness_process import SITES
from tests.models import write_llama
from tests.test_requirements import required
from tests.test_wheel import imported

EXTRAS = ("hf", "gguf", "benchmarks", "wandb", "harness")
OF_OTHERS = {"accelerate>=1.0"}
"""What the harness's own model needs, which no verb here runs."""


def test_the_requirements_are_those_of_the_extras() -> None:
    groups = required()
    named = {str(requirement) for extra in EXTRAS for requirement in groups[extra]}
    assert {str(Requirement(text)) for text in REQUIREMENTS.values()} == named - OF_OTHERS


def test_nothing_imports_them_but_the_door() -> None:
    """An import of its own would be a traceback where the package is not there."""
    wrong = {f"{path}: {module}" for module, path in imported() if module in REQUIREMENTS}
    assert not wrong, "use optional_package of megatron_ultralong/program/optional.py"


@pytest.fixture
def without_extras(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that has the wheel and what it requires alone."""
    find = importlib.util.find_spec
    monkeypatch.setattr(optional, "HARNESS", tmp_path / "harness")

    def found(name: str, package: str | None = None) -> Any:
        return None if name.split(".")[0] in REQUIREMENTS else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", found)


@pytest.mark.usefixtures("without_extras")
@pytest.mark.parametrize("module", REQUIREMENTS)
def test_the_message_has_the_command_that_installs_it(module: str) -> None:
    with pytest.raises(Exception, match=r"--some: this needs .* pip install '.*', or leave it out"):
        optional_package(module, "--some", "leave it out")


@pytest.mark.usefixtures("without_extras")
def test_what_make_harness_has_made_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = optional.HARNESS
    said = "this needs .*lm_eval.*: `make harness` in the clone, or pip install 'lm_eval"
    packages = harness / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    (packages / "lm_eval").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(InputError, match=said):
        check_optional_package("lm_eval.tasks", "x")  # `make harness` was interrupted
    (harness / "installed").touch()
    for module in ("datasets", "transformers"):
        with pytest.raises(InputError, match="which is not installed"):
            check_optional_package(module, "x")
    assert str(packages) not in sys.path
    (packages / "lm_eval" / "__init__.py").touch()
    check_optional_package("lm_eval.tasks", "x")
    assert sys.path[-1] == str(packages)


def test_the_version_of_make_harness_is_told_before_it_is_importable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished evaluation states it, and the same command was another: it had none yet."""
    find = importlib.metadata.version

    def version(name: str) -> str:
        if name == "lm_eval":
            raise importlib.metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(optional, "HARNESS", tmp_path)
    folder = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    packages = tmp_path / folder
    for name in ("lm_eval", "absent"):
        (packages / f"{name}-9.8.dist-info").mkdir(parents=True)
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.8\n"
        (packages / f"{name}-9.8.dist-info" / "METADATA").write_text(text)
    assert installed_version("lm_eval") is None  # `make harness` was interrupted
    (tmp_path / "installed").touch()
    assert installed_version("lm_eval") == "9.8"
    assert installed_version("absent") is None  # nothing else is taken from there
    assert str(packages) not in sys.path


@pytest.mark.skipif(not SITES, reason="there is no .venv/harness: make harness")
def test_the_harness_beside_this_environment_is_found() -> None:
    program = (
        "from megatron_ultralong.program.optional import installed_version, optional_package\n"
        "print(installed_version('lm_eval'))\n"
        "print(optional_package('lm_eval', 'x').__file__)\n"
        "print(installed_version('lm_eval'))"
    )
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    before, file, after = found.stdout.splitlines()
    assert file.startswith(SITES[0])
    assert before == after != "None"


@pytest.mark.usefixtures("without_extras")
@pytest.mark.parametrize(
    "words",
    [
        ["convert", "verify", "hf", "hf", "--logits"],
        ["evaluate", "passkey", "--load", "hf", "--lengths", "64"],
        ["evaluate", "ruler", "--load", "hf", "--lengths", "64", "--tasks", "cwe"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_verb_that_needs_one_says_so(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_llama(tmp_path / "hf", num_hidden_layers=1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "which is not installed: pip install '" in said
    assert "Traceback" not in said
