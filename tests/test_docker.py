"""The images' steps, without Docker: what a build copies, installs and checks."""

from __future__ import annotations

import fnmatch
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest
import setuptools

from docker.constraints import check, constraints, own_versions, requirements
from tests.models import write_llama

ROOT = Path(__file__).parent.parent
DOCKERFILES = ("Dockerfile", "Dockerfile.cpu")


def context() -> list[str]:
    """Names at the root of the repository that `.dockerignore` lets into a build."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    return [line[1:] for line in lines if line.startswith("!")]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_takes_its_steps_from_the_script(name: str) -> None:
    text = re.sub(r"\\\n\s*", " ", (ROOT / name).read_text())
    ran = re.findall(r"^RUN (?:\w+=\S+ )*(\S+) (\S+)", text, flags=re.MULTILINE)
    assert ran == [
        ("docker/install.sh", "requirements"),
        ("docker/install.sh", "package"),
    ]
    assert re.findall(r"^FROM (.*)$", text, flags=re.MULTILINE) == [
        "${BASE}${BASE_DIGEST:+@${BASE_DIGEST}}"
    ]
    sources = re.findall(r"^COPY (.+) \S+$", text, flags=re.MULTILINE)
    for source in " ".join(sources).split():
        assert (ROOT / source).exists()
        top = source.split("/")[0]
        assert top == "." or any(fnmatch.fnmatch(top, kept) for kept in context()), source
    assert re.search(r"^USER \d+$", text, flags=re.MULTILINE)
    words = re.search(r"^HEALTHCHECK .*CMD \[(.*)\]$", text, flags=re.MULTILINE)
    assert words
    # No ranks and no CUDA context: a run may have filled the GPUs.
    assert words[1] == '"ultralong", "doctor", "--no-communication", "--no-gpus"'
    assert "PYTHONNOUSERSITE=1" in text
    if name == "Dockerfile":  # NVIDIA's image sets it to 1
        assert "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=0" in text


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_installed_is_kept_where_code_and_pages_change(name: str) -> None:
    """A layer is made again where a file changes that was copied before it."""
    text = (ROOT / name).read_text()
    before = text[: text.index("docker/install.sh requirements")]
    copied = re.findall(r"^COPY (.+) \S+$", before, flags=re.MULTILINE)
    assert " ".join(copied).split() == [
        *("docker/install.sh", "docker/constraints.py", "requirements", "setup.py"),
    ]


def test_what_an_image_installs_is_what_the_package_requires(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As setup.py says it to setuptools."""
    said: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", said.update)
    runpy.run_path(str(ROOT / "setup.py"))
    assert requirements() == said["install_requires"]
    extras = said["extras_require"]
    assert requirements("hf", "benchmarks") == [
        *said["install_requires"], *extras["hf"], *extras["benchmarks"]
    ]  # fmt: skip


def test_the_page_gives_the_size_of_what_an_image_installs() -> None:
    """Its command names the extras that the script installs."""
    script = (ROOT / "docker" / "install.sh").read_text()
    page = (ROOT / "docs" / "clusters.md").read_text()
    installed = re.findall(r"constraints\.py requirements ([a-z ]+) >", script)
    measured = re.findall(r"constraints\.py size ([a-z ]+)`", page)
    assert installed == measured
    assert len(installed) == 1


def test_what_an_image_brings_is_kept(tmp_path: Path) -> None:
    own = {"torch": "2.9.0a0+50eac811a6.nv25.9", "transformer-engine": "2.8.0+123"}
    lines = constraints(own, megatron_core="0.19.2")
    assert "torch==2.9.0a0+50eac811a6.nv25.9" in lines
    assert "transformer-engine==2.8.0+123" in lines
    assert [line for line in lines if line.startswith(("torch==", "megatron"))] == [
        "torch==2.9.0a0+50eac811a6.nv25.9",
        "megatron-core==0.19.2",
    ]
    assert "tyro==" in " ".join(lines)
    here = own_versions()
    assert "torch" in here
    check(here)
    with pytest.raises(SystemExit, match=r"torch was 1\.0, is .*Take a base image"):
        check({**here, "torch": "1.0"})


def test_an_unknown_step_is_refused_before_the_first_runs(tmp_path: Path) -> None:
    """It was after the minutes of the first."""
    (tmp_path / "python").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "docker" / "install.sh"), "requirements", "pakage"],
        env={**os.environ, "PYTHON": str(tmp_path / "python")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "step 'pakage' is not known" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_the_steps_of_the_cpu_image_install_a_program_that_works(tmp_path: Path) -> None:
    """In a new environment that sees this one's libraries, so that none is downloaded."""
    copied = tmp_path / "context"
    for name in context():
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
        if source.is_dir():
            shutil.copytree(source, copied / name, ignore=ignore)
        else:
            shutil.copy(source, copied / name)
    image = tmp_path / "image"
    venv.create(image, with_pip=False, symlinks=True)
    purelib = sysconfig.get_path("purelib", vars={"base": str(image)})
    (Path(purelib) / "image.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PATH": f"{image}/bin:{os.environ['PATH']}",
        "PYTHON": str(image / "bin" / "python"),
        # No download of setuptools for each build: this one's. pip reads the value of an option
        # that begins with "no" as that of the option without it.
        "PIP_NO_BUILD_ISOLATION": "0",
    }

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    out = run("bash", str(copied / "docker" / "install.sh"), "requirements", "package")
    assert "0 problems" in out
    assert (image / "bin" / "ultralong").exists()
    assert (Path(purelib) / "megatron_ultralong" / "spec.py").exists()
    write_llama(tmp_path / "hf", num_hidden_layers=1)
    run("ultralong", "convert", "import", "hf", "megatron")
    assert "torch_dist" in run("ultralong", "convert", "inspect", "megatron")
    assert sys.prefix not in run("which", "ultralong")
