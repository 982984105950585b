"""What stands beside the code: citation, changelog, badges, templates, the workflow."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import megatron_ultralong
from tests.patience import patience
from tools import draw_badges

ROOT = Path(__file__).parent.parent


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == megatron_ultralong.__version__
    assert citation["license"] == draw_badges.given("license") == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    (paper,) = citation["references"]
    assert paper["url"] in read("README.md")


def test_the_changelog_begins_with_what_is_unreleased() -> None:
    heads = re.findall(r"^## (.*)$", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert heads[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", head) for head in heads[1:])
    assert heads[1].split()[0] == megatron_ultralong.__version__


TOP = {
    ".ci",
    ".dockerignore",
    ".github",
    ".gitignore",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "Dockerfile",
    "Dockerfile.cpu",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "benchmarks",
    "docker",
    "docs",
    "examples",
    "megatron_ultralong",
    "mkdocs.yml",
    "pyproject.toml",
    "requirements",
    "setup.py",
    "tests",
    "tools",
}
"""What a visitor sees first; what is new belongs into a folder, unless a tool looks for it here."""


def test_nothing_is_left_lying_at_the_top() -> None:
    """Nor a package or an archive anywhere."""
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout of git")
    words = ["git", "-C", str(ROOT), "ls-files"]
    files = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {file.split("/")[0] for file in files} == TOP
    archives = (".whl", ".tar", ".gz", ".xz", ".zip", ".safetensors", ".pt", ".bin", ".so")
    base = "examples/demo/base/model.safetensors"
    assert [file for file in files if file.endswith(archives)] == [base]


@pytest.mark.parametrize("python", ["nosuch9", "./shim", "./old"])
@pytest.mark.parametrize("is_there", [False, True])
def test_make_says_which_python_it_takes(tmp_path: Path, python: str, is_there: bool) -> None:
    """Of one that is not there, a shim that starts nothing, as pyenv's, and an old one.

    An environment that is there is not to be removed for any of them.
    """
    if is_there:
        pretend(tmp_path / ".venv", "3.11.7")
    for name, text in (("shim", "echo not found >&2\nexit 127"), ("old", "exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    done = make(tmp_path, "install", f"PYTHON={python}")
    assert done.returncode == 2
    said = f"PYTHON '{python}' is not a Python 3.10-3.13 that starts: name one with make install "
    own, line, _ = done.stderr.partition(f"{said}PYTHON=...\n")
    assert line
    assert {"nosuch9": "nosuch9: ", "./shim": "not found\n", "./old": ""}[python] in own
    assert own.count("\n") == (python != "./old")
    assert "rm -r" not in done.stderr
    assert (tmp_path / ".venv").exists() == is_there


def test_make_install_ends_with_what_comes_next(tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / "requirements").mkdir()
    for name in ("setup.py", *(f"requirements/{n}.txt" for n in ("constraints", "build", "lock"))):
        (tmp_path / name).touch()
    (tmp_path / ".venv" / "installed").touch()
    line = "now: source .venv/bin/activate; ultralong doctor\n"
    assert make(tmp_path, "install").stdout == line
    assert line not in make(tmp_path, "bench", "--dry-run").stdout


REQUIREMENTS = ("constraints", "build", "lock", "dev", "harness")


def pretend(folder: Path, version: str, base: str = "/opt") -> str:
    """A Python of this version, as far as `make` asks it: it runs those two lines."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    major, minor, _ = version.split(".")
    (folder / "bin" / "python").write_text(
        "#!/bin/sh\n"
        f'case "$2" in *platform*) echo "{version} in {base}";; *) echo {major}{minor};; esac\n'
    )
    (folder / "bin" / "python").chmod(0o755)
    return str(folder / "bin" / "python")


@pytest.mark.parametrize("target", ["install", "dev", "harness"])
def test_what_is_asked_for_is_compared_with_what_is_there(tmp_path: Path, target: str) -> None:
    """Of the same Python, another version, one elsewhere; of torch's index; not of variables."""
    pretend(tmp_path / ".venv", "3.11.7")
    make(tmp_path, "--dry-run", "install")
    (tmp_path / ".venv" / "harness").mkdir()
    for name in ("installed", "developing", "harness/installed"):
        (tmp_path / ".venv" / name).touch()
    same, other = pretend(tmp_path / "a", "3.11.7"), pretend(tmp_path / "b", "3.12.1")
    elsewhere = pretend(tmp_path / "c", "3.11.7", "/usr")
    assert make(tmp_path, target, f"PYTHON={same}").returncode == 0
    for python, what, name in (
        (other, "3.12.1 in /opt", ".venv312"),
        (elsewhere, "3.11.7 in /usr", ".venv311"),
    ):
        done = make(tmp_path, target, f"PYTHON={python}")
        assert done.returncode == 2
        assert done.stderr.splitlines()[0] == (
            f".venv is Python 3.11.7 in /opt, PYTHON={python} is {what}: remove it (rm -r .venv), "
            f"or name another one with VENV={name}"
        )
        if "/b/" in python:  # another one is never the same
            shutil.copytree(tmp_path / ".venv", tmp_path / name, dirs_exist_ok=True)
            done = make(tmp_path, target, f"PYTHON={python}", f"VENV={name}")
            assert f"VENV={name}-2" in done.stderr
    cpu = "https://download.pytorch.org/whl/cpu"
    assert make(tmp_path, target, f"TORCH_INDEX={cpu}").returncode == 0  # not known: an older one
    (tmp_path / ".venv" / "torch_index").write_text(f"{cpu}\n")
    assert make(tmp_path, target, f"TORCH_INDEX={cpu}").returncode == 0
    for index, what in (("https://x/cu130", "https://x/cu130"), ("", "pip's own")):
        done = make(tmp_path, target, f"TORCH_INDEX={index}")
        assert done.returncode == 2
        said = f".venv has torch of {cpu}, TORCH_INDEX is {what}: remove it (rm -r .venv), or name"
        assert done.stderr.startswith(said)
    assert make(tmp_path, target).returncode == 0


def test_the_real_python_of_an_environment_is_its_own(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    (tmp_path / ".venv" / "installed").touch()
    make(tmp_path, "--dry-run", "install")
    (tmp_path / ".venv" / "installed").touch()
    for python in (sys.executable, tmp_path / ".venv" / "bin" / "python"):
        assert make(tmp_path, "install", f"PYTHON={python}").returncode == 0


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The Makefile's rules in a folder of their own."""
    (folder / "requirements").mkdir(exist_ok=True)
    for name in ("setup.py", *(f"requirements/{n}.txt" for n in REQUIREMENTS)):
        if not (folder / name).exists():
            (folder / name).touch()
    return subprocess.run(
        ["make", "--no-print-directory", "--file", str(ROOT / "Makefile"), *words],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},  # of make test
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )


@pytest.mark.parametrize(("target", "example"), [("mock", "llama3.1-8b"), ("smollm2", "smollm2")])
def test_an_example_runs_in_a_clone_whose_path_has_spaces(
    tmp_path: Path, target: str, example: str
) -> None:
    """Its second word was taken for a command."""
    clone = tmp_path / "my clone"
    script = clone / "examples" / example / "run_all.sh"
    script.parent.mkdir(parents=True)
    script.write_text('echo "$WORK"; echo "${PATH%%:*}"\n')
    make(clone, "--dry-run", "install")
    (clone / ".venv").mkdir()
    (clone / ".venv" / "installed").touch()
    done = make(clone, "--silent", target)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{clone}/{target}-output", f"{clone}/.venv/bin"]


def test_the_commands_of_a_page_refuse_a_folder_that_holds_something(tmp_path: Path) -> None:
    """A second `make own-model` ended in a trace."""
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "tools.own_model", "--output", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "holds 1 entries, file among them: existing files are not overwritten" in done.stderr
    assert "Traceback" not in done.stderr


def test_badges_are_what_setup_says() -> None:
    drawn = draw_badges.badges()
    assert {path.name for path in draw_badges.FOLDER.iterdir()} == set(drawn)
    readme = read("README.md")
    for name, text in drawn.items():
        assert read(f"docs/badges/{name}") == text, "python tools/draw_badges.py"
        assert f"docs/badges/{name})" in readme
    words = re.findall(r"<title>(.*)</title>", "".join(drawn.values()))
    for word in words:
        assert word.split(": ")[1] in readme, word


def test_the_workflow_runs_what_every_machine_runs() -> None:
    flow = yaml.safe_load(read(".github/workflows/ci.yml"))
    (job,) = flow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert ROOT.joinpath(".ci/run").stat().st_mode & 0o111
    assert "TORCH_INDEX ?=" in read("Makefile")
    assert set(job["env"]) == {"TORCH_INDEX"}


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/**/*.yml")), ids=lambda path: path.name)
def test_github_reads_its_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "ISSUE_TEMPLATE" and path.name != "config.yml":
        assert {"name", "description", "body"} <= set(form)
        names = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert len(names) == len(set(names)) > 0
        assert all(part["attributes"].get("label") for part in form["body"] if "id" in part)


def dry_run(*words: str) -> str:
    """Commands that make would run for targets, were nothing there yet."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"}
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", *words],
        cwd=ROOT,
        env=kept,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.mark.parametrize("target", ["install", "demo", "mock", "smollm2"])
def test_what_users_make_installs_nothing_of_development(target: str) -> None:
    commands = dry_run(target)
    assert "requirements/lock.txt" in commands
    assert "requirements/dev.txt" not in commands


@pytest.mark.parametrize("target", ["test", "test-all", "quick", "lint", "docs", "wheel", "width"])
def test_what_developers_make_installs_that_too(target: str) -> None:
    assert dry_run(target).index("lock.txt") < dry_run(target).index("requirements/dev.txt")


def test_torch_comes_from_the_index_that_is_named() -> None:
    url = "https://download.pytorch.org/whl/cpu"
    assert f"--index-url {url} torch" in dry_run("install", f"TORCH_INDEX={url}")
    assert "--index-url" not in dry_run("install", "TORCH_INDEX=")
