"""Steps of examples/smollm2 that are stopped, moved or set in other ways: what they run then.

The programs that they call write down their words here, and make the folder of --save.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.patience import patience
from tests.test_smollm2 import SCRIPTS, settings
from tests.warm.programs import ROOT

RECORD = """#!/bin/sh
for word in "$(basename "$0")" "$@"; do printf '%s\\t' "$word"; done >> "$CALLS"
echo >> "$CALLS"
case " $* " in *" --dry-run "*) exit ;; esac
while [ $# -gt 0 ]; do
    case "$1" in --save) mkdir -p "$2" ;; esac
    shift
done
"""


class Machine:
    """Where every program of the steps writes its words down."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work = folder, folder / "work"
        (folder / "bin").mkdir()
        for name in ("python", "torchrun", "ultralong"):
            (folder / "bin" / name).write_text(RECORD)
            (folder / "bin" / name).chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """Of its steps."""
        return {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "WORK": str(self.work),
            "CALLS": str(self.folder / "calls"),
        }

    def run(self, script: str, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """A step, with ``settings`` in its environment."""
        return subprocess.run(
            ["bash", str(SCRIPTS / script), *words],
            env={**self.environment, **settings},
            cwd=self.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def calls(self) -> list[list[str]]:
        """Words of each program that ran since the last time."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.rstrip("\t").split("\t") for line in lines]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("leads_nowhere", [True, False])
def test_the_weights_of_a_folder_that_was_moved_are_found(
    machine: Machine, leads_nowhere: bool
) -> None:
    """The link in it led to the old place, and step 1 ended with `ln: File exists`."""
    weights = machine.work / "cache" / "SmolLM2-135M-Instruct"
    weights.mkdir(parents=True)
    if leads_nowhere:
        (machine.work / "hf").symlink_to(machine.folder / "before" / "cache" / weights.name)
    done = machine.run("01_get_weights.sh")
    assert done.returncode == 0, done.stderr
    assert (machine.work / "hf").resolve() == weights
    assert machine.calls()[-1] == ["ultralong", "convert", "inspect", str(machine.work / "hf")]
    assert "kept" in machine.run("01_get_weights.sh").stdout


@pytest.mark.parametrize("name", ["work", "two words", "a*"])
@pytest.mark.parametrize(
    "script",
    sorted(path.name for path in SCRIPTS.glob("*.sh") if "torchrun --" in path.read_text()),
)
def test_a_work_with_spaces_is_one_folder(machine: Machine, script: str, name: str) -> None:
    """Step 7 took `my work` for two models, after the training."""
    machine.work = machine.folder / name
    (machine.work / "corpus" / "train").mkdir(parents=True)
    for file in ("choices.jsonl", "corpus/train/code.jsonl", "run_all"):
        (machine.work / file).touch()
    done = machine.run(script)
    assert done.returncode == 0, done.stderr
    found = machine.calls()
    assert found
    for words in found:
        for word in words:
            assert str(machine.folder) not in word or f"{machine.work}/" in word, words


@pytest.mark.parametrize(
    ("example", "name", "word"), [("smollm2", "CPU", "--cpu"), ("llama3.1-8b", "MOCK", "--mock")]
)
def test_small_values_are_asked_for_by_a_word_alone(
    tmp_path: Path, example: str, name: str, word: str
) -> None:
    """Some systems set CPU=x86_64 for every program: all steps ran with the values of --cpu."""
    script = SCRIPTS.parent / example / "settings.sh"
    command = 'source "$0" && echo "$SEQ_LENGTH"'
    found = [
        subprocess.run(
            ["bash", "-euc", command, str(script), *words],
            env={"PATH": os.environ["PATH"], "WORK": str(tmp_path), **environment},
            capture_output=True, text=True, check=True,
        ).stdout
        for environment, words in (({}, ()), ({name: "x86_64"}, ()), ({}, (word,)))
    ]  # fmt: skip
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("small", "word"), [("smollm2/cpu.sh", "--cpu"), ("llama3.1-8b/mock/settings.sh", "--mock")]
)
def test_a_setting_of_the_environment_stays_with_small_values(
    tmp_path: Path, small: str, word: str
) -> None:
    """`PROMPTS=3 run_all.sh --mock` asked one: those of --mock stood before the user's."""
    text = (SCRIPTS.parent / small).read_text()
    own = {"PATH", "HF_ENDPOINT", "HF_HOME", "HF_HUB_DISABLE_XET", "PET_STANDALONE"}
    names = sorted({*re.findall(r"\b([A-Z][A-Z_]+)=", text)} - own)
    assert len(names) > 20
    others = {"WORK": str(tmp_path), "VALID_FRACTION": "0.5", "DEPTHS": "50"}
    given = {name: "4096" for name in names} | others
    script = SCRIPTS.parent / small.split("/")[0] / "settings.sh"
    prints = "; ".join(f'echo "${name}"' for name in names)
    done = subprocess.run(
        ["bash", "-euc", f'source "$0" && {prints}', str(script), word],
        env={"PATH": os.environ["PATH"], **given}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert dict(zip(names, done.stdout.splitlines(), strict=True)) == {n: given[n] for n in names}


@pytest.mark.parametrize(
    ("example", "words"),
    [("smollm2", ("128k", "256k")), ("smollm2", ("256k", "--cpu", "128k")),
     ("llama3.1-8b", ("1m", "2m"))],
)  # fmt: skip
def test_two_targets_are_refused(example: str, words: tuple[str, ...]) -> None:
    """The last one counted, and the other was not made."""
    command = ["bash", "-euc", 'source "$0"', str(SCRIPTS.parent / example / "settings.sh")]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    targets = [word for word in words if word != "--cpu"]
    assert f"one target at a time, not {targets[0]} and {targets[1]}" in done.stderr
    done = subprocess.run([*command, words[0], words[0]], capture_output=True, check=False)
    assert done.returncode == 0, "the same twice is one"


TRAINING = {
    "05_train.sh": [{"LR": "1e-3"}, {"FACTOR": "16"}, {"FIRST_ITERS": "5"},
                    {"TRAIN_ITERS": "5"}, {"PRETRAIN_FLAGS": "--seed 2"}],
    "06_tune.sh": [{"SFT_FLAGS": "--num-epochs 2"}],
    "million.sh": [{"FROM": "run-128k"}, {"MILLION_LR": "1e-3"}, {"MILLION_FACTOR": "256"},
                   {"MILLION_FLAGS": "--seed 2"}],
}  # fmt: skip


@pytest.mark.parametrize("script", TRAINING)
def test_a_run_of_other_settings_is_refused(machine: Machine, script: str) -> None:
    """A finished run said that nothing was left to do, and figures of another rate followed."""
    for part in ("train", "held_out"):
        (machine.work / "corpus" / part).mkdir(parents=True)
        (machine.work / "corpus" / part / "books.jsonl").touch()
    for _ in range(2):
        assert machine.run(script).returncode == 0
        assert any("--save" in words for words in machine.calls()), (
            "it continues, or says that it is done"
        )
    for changed in TRAINING[script]:
        refused = machine.run(script, **changed)
        assert refused.returncode == 1, changed
        assert "is there, but the settings, or what it is made of, have changed" in refused.stderr
        for value in changed.values():
            assert value.replace("run-", "/run-").split()[-1] in refused.stderr
    assert machine.run(script, GPUS="2").returncode == 0, "the same work on others"


@pytest.mark.parametrize("script", ["03_prepare.sh", "million.sh"])
def test_rows_of_no_text_name_the_step_that_writes_it(machine: Machine, script: str) -> None:
    """`prepare` asked for a --source, and without WORK bash told that it had no such file."""
    refused = machine.run(script)
    assert refused.returncode == 1
    assert "/corpus has no text of 'train" in refused.stderr
    assert refused.stderr.endswith(": 02_get_corpus.sh writes it\n")
    assert not machine.work.exists()


def test_a_run_from_another_first_part_is_refused(machine: Machine) -> None:
    machine.work.mkdir()
    assert machine.run("05_train.sh").returncode == 0
    (machine.work / "first-128k").rmdir()
    machine.calls()
    refused = machine.run("05_train.sh", PRETRAIN_FLAGS="--seed 2")
    assert len(machine.calls()) == 1, "the first part is made again"
    assert refused.returncode == 1
    assert "run-128k is there, but the settings, or what it is made of" in refused.stderr
    (machine.work / "run-128k").rmdir()
    assert machine.run("05_train.sh", PRETRAIN_FLAGS="--seed 2").returncode == 0


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["short", "near", "far"]),
        ({"FAR_QUESTIONS": "0"}, ["short", "near"]),
        ({"QUESTIONS": "0", "FAR_QUESTIONS": "0"}, ["short"]),
    ],
)
def test_questions_can_be_left_out(
    machine: Machine, settings: dict[str, str], names: list[str]
) -> None:
    machine.work.mkdir()
    assert machine.run("06_tune.sh", **settings).returncode == 0
    calls = machine.calls()
    (prepared,) = (words for words in calls if words[:3] == ["ultralong", "prepare", "chat"])
    sources = [words for flag, words in itertools.pairwise(prepared) if flag == "--source"]
    assert [source.partition("=")[0] for source in sources] == names
    written = [words[3] for words in calls if words[0] == "python"]
    assert written == [source.partition("=")[2] for source in sources[1:]]


COUNTS = (
    *("WORKERS", "FIRST_ITERS", "TRAIN_ITERS", "PROMPTS", "BEFORE_PROMPTS", "LOSS_ROWS"),
    *("SHORTEST_FAR", "LONGEST_FAR", "QUESTIONS", "FAR_QUESTIONS"),
)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", ["0", "two", "1.5", "-1", "1000000000000", "1 2"])
def test_a_count_that_is_none_is_told_by_the_first_step(
    machine: Machine, name: str, value: str
) -> None:
    """With PROMPTS=x step 7 ended in a trace."""
    refused = machine.run("01_get_weights.sh", **{name: value})
    if value == "0" and name.endswith("QUESTIONS"):
        assert refused.returncode == 0, "none of them is a number, too"
        return
    assert refused.returncode == 2
    example = 400 if name.endswith("QUESTIONS") else 2
    told = f"{name} must be a whole number, such as {example}, not '{value}'"
    assert told in refused.stderr
    assert not machine.work.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda archive: archive.write_bytes(archive.read_bytes()[:-40]), "is damaged (File is"),
        (lambda archive: archive.write_bytes(damaged(archive.read_bytes())), "is damaged (Bad CRC"),
        (Path.unlink, "has 0 files, not one archive"),
        (lambda archive: (archive.parent / "more").touch(), "has 2 files, not one archive"),
    ],
)
def test_a_damaged_package_is_told_with_its_folder(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    """There was a trace, each time, and nothing said what to remove."""
    folder = tmp_path / "packages" / "nltk-3.9.2"
    folder.mkdir(parents=True)
    archive = folder / "nltk-3.9.2-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("nltk/module.py", "value = 1\n" * 100)
    words = ["--packages", str(folder.parent), "--indexes", "pypi", "--only", "nltk"]
    damage(archive)
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "corpus.py"), str(tmp_path / "corpus"), *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert message in line
    assert f"{folder}" in line
    assert "to fetch it again" in line
    assert not (tmp_path / "corpus").exists()


def damaged(content: bytes) -> bytes:
    """Another byte in the first file."""
    return content.replace(b"value = 1", b"value = 2", 1)


@pytest.mark.parametrize("length", [4096, 100_000, 131_072])
def test_far_questions_fit_into_a_row_of_conversations(length: int) -> None:
    """They were as long as a row of documents: with shorter rows of conversations all or some were
    dropped, after the training.
    """
    found = settings(CHAT_LENGTH=f"{length}")
    shortest, longest = (int(found[name]) for name in ("SHORTEST_FAR", "LONGEST_FAR"))
    # 3.4 characters a token, as in ablations.py
    assert length / 2 < shortest / 3.4 < longest / 3.4 <= length


def test_a_report_stays_where_results_cannot_be_read(machine: Machine) -> None:
    """Step 8 removed the page first."""
    page = machine.work / "report-128k" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("the page of before")
    results = machine.work / "results-128k" / "loss"
    results.mkdir(parents=True)
    (results / "loss.json").write_text("{")
    program = machine.folder / "bin" / "ultralong"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m megatron_ultralong "$@"\n')
    done = machine.run("08_report.sh", PYTHONPATH=str(ROOT))
    assert done.returncode == 2, done.stderr
    assert page.read_text() == "the page of before"
    good = (ROOT / "docs" / "smollm2" / "target" / "loss.json").read_text()
    (results / "loss.json").write_text(good)
    done = machine.run("08_report.sh", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert "the page of before" not in page.read_text()


@pytest.mark.parametrize(
    ("script", "lock"),
    [("01_get_weights.sh", "SmolLM2-135M-Instruct.lock"), ("02_get_corpus.sh", "corpus.lock")],
)
def test_one_process_fetches_into_a_cache_and_others_wait(
    machine: Machine, script: str, lock: str
) -> None:
    """Two removed what the other was fetching, and took half of an archive."""
    cache = machine.folder / "cache of all"
    cache.mkdir()
    with (cache / lock).open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waits = subprocess.Popen(
            ["bash", str(SCRIPTS / script)],
            env={**machine.environment, "CACHE": str(cache)}, cwd=machine.folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert waits.stdout is not None
        told = f"{cache / Path(lock).stem} is being made by another process: waiting\n"
        assert waits.stdout.readline() == told
        assert not machine.calls()
    out, _ = waits.communicate(timeout=patience(60))
    assert waits.returncode == 0, out
    assert machine.calls()


@pytest.mark.parametrize("script", ["01_get_weights.sh", "02_get_corpus.sh"])
def test_a_cache_of_others_is_used_without_a_lock(machine: Machine, script: str) -> None:
    """What is whole there needs none."""
    cache = machine.folder / "cache"
    cache.mkdir()
    for name in ("SmolLM2-135M-Instruct.lock", "corpus.lock"):
        (cache / name).mkdir()  # nobody can write into it, root neither
    done = machine.run(script, CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert machine.calls()
