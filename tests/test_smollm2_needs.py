"""examples/smollm2/check_needs.sh: what is missing is told before the first step."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_smollm2 import SCRIPTS
from tests.warm.programs import ROOT

TOOLS = ("bash", "cat", "cksum", "cut", "df", "dirname", "flock", "nproc", "stat", "tail")
"""Of the system, that the scripts of settings use."""
NEEDED = ("ultralong", "torchrun", "python", "apt-get", "dpkg-deb")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder of programs, and nothing else on the search path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name) or "")
    (folder / "python").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    for name in {*NEEDED} - {"python"}:
        (folder / name).write_text("#!/bin/bash\n")
    for name in NEEDED:
        (folder / name).chmod(0o755)
    return folder


def check(machine: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script's answer, on a machine with these programs and no GPU."""
    return subprocess.run(
        [str(machine / "bash"), str(SCRIPTS / "check_needs.sh"), *words],
        env={
            "PATH": str(machine),
            "HOME": os.environ.get("HOME", "/"),
            "WORK": str(machine.parent / "work"),
            "CUDA_VISIBLE_DEVICES": "",
            **environment,
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def report_disk(machine: Path, megabytes: int) -> None:
    """A disk with so much room, as df reports it."""
    (machine / "df").unlink()
    (machine / "df").write_text(f"#!/bin/bash\necho Avail\necho {megabytes}\n")
    (machine / "df").chmod(0o755)


def test_nothing_is_told_where_all_is_there(machine: Path) -> None:
    report_disk(machine, 11_000)
    done = check(machine, "--cpu")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (machine.parent / "work").exists(), "it only looks"


@pytest.mark.parametrize("name", NEEDED)
def test_each_missing_program_is_told(machine: Path, name: str) -> None:
    report_disk(machine, 11_000)
    (machine / name).unlink()
    done = check(machine, "--cpu")
    if name in ("apt-get", "dpkg-deb"):  # the corpus of a CPU is of the other index alone
        assert done.returncode == 0, done.stderr
        done = check(machine)
        assert 'CORPUS_FLAGS="--indexes pypi"' in done.stderr
    assert done.returncode == 2
    assert f"the program {name}" in done.stderr
    assert "Traceback" not in done.stderr


def test_made_work_needs_no_package_manager(machine: Path) -> None:
    for name in ("hf", "corpus"):
        (machine.parent / "work" / name).mkdir(parents=True)
    for name in ("apt-get", "dpkg-deb"):
        (machine / name).unlink()
    assert "of step 2" not in check(machine).stderr


@pytest.mark.parametrize("gpus", ["0", "3", "8", "two", "1 "])
def test_a_number_of_gpus_that_no_step_takes_is_told(machine: Path, gpus: str) -> None:
    done = check(machine, "--cpu", GPUS=gpus)
    assert done.returncode == 2
    assert f"GPUS must be 1, 2 or 4, not '{gpus}'" in done.stderr


def test_missing_gpus_are_told_with_both_numbers(machine: Path) -> None:
    report_disk(machine, 11_000)
    done = check(machine, "256k", GPUS="2")
    assert done.returncode == 2
    assert "torch sees 0 GPUs, and GPUS is 2" in done.stderr
    assert "run_all.sh --cpu" in done.stderr
    assert done.stderr.count("\n") == 1, "nothing else is missing"


@pytest.mark.parametrize(
    ("megabytes", "cache", "told"),
    [
        (10_999, "", ["work has 10999 MB free, and the steps need 11,000 MB"]),
        (8_999, "other", ["work has 8999 MB free, and the steps need 9,000 MB"]),
        (9_000, "other", []),
        (1_999, "other", ["need 9,000 MB", "other has 1999 MB free, and the steps need 2,000 MB"]),
    ],
)
def test_a_full_disk_is_told(machine: Path, megabytes: int, cache: str, told: list[str]) -> None:
    report_disk(machine, megabytes)
    own = {"CACHE": str(machine.parent / cache)} if cache else {}
    done = check(machine, "--cpu", **own)
    assert done.returncode == (2 if told else 0), done.stderr
    assert done.stderr.count("\n") == len(told)
    for text in told:
        assert text in done.stderr


def test_run_all_looks_before_its_first_step(machine: Path) -> None:
    """Whose name it prints otherwise."""
    report_disk(machine, 5)
    done = subprocess.run(
        [str(machine / "bash"), str(SCRIPTS / "run_all.sh"), "--cpu"],
        env={"PATH": str(machine), "WORK": str(machine.parent / "work")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
