"""`once` of examples/steps.sh: what is there is kept, unless another command would make it now."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.patience import patience
from tests.warm.programs import ROOT

SLOWLY = """
. {root}/examples/steps.sh
once "$WORK/rows" bash -c 'echo run >> "$WORK/calls"; until [ -e "$WORK/go" ]; do sleep 0.05; done
    echo made > "$WORK/rows"' {words}
"""
"""A command that is a process of its own, and waits for WORK/go."""
MAKE = 'make() { echo "$@" >> "$WORK/calls"; [ -z "${FAILS:-}" ] || return 3; echo made > "$2"; }'


class Steps:
    """A step that makes OUTPUT in a WORK."""

    def __init__(self, work: Path) -> None:
        self.work = work
        work.mkdir()

    def once(self, output: str, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """``once WORK/OUTPUT make --output WORK/OUTPUT WORD...``, @ for WORK."""
        quoted = " ".join(f"'{word}'".replace("@", str(self.work)) for word in words)
        path = f"'{self.work}/{output}'"
        script = f". {ROOT}/examples/steps.sh; {MAKE}; once {path} make --output {path} {quoted}"
        environment = {"PATH": "/usr/bin:/bin", "WORK": str(self.work), "here": "/somewhere"}
        return subprocess.run(
            ["bash", "-euc", script],
            env={**environment, **settings}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    @property
    def num_calls(self) -> int:
        """How often the command ran."""
        return len((self.work / "calls").read_text().splitlines())


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(tmp_path / "work")


def test_the_same_command_is_not_run_again(steps: Steps) -> None:
    words = ("--seq-length", "256", "--name", "two words", "a=@/x")
    assert steps.once("rows", *words).returncode == 0
    again = steps.once("rows", *words)
    assert again.returncode == 0
    assert "rows is there: kept" in again.stdout
    assert steps.num_calls == 1


def test_another_command_is_refused_with_both_and_a_fix(steps: Steps) -> None:
    steps.once("rows", "--seq-length", "256")
    refused = steps.once("rows", "--seq-length", "512")
    assert refused.returncode == 1
    for part in (
        "WORK/rows --seq-length 256",
        "WORK/rows --seq-length 512",
        "Set them back",
        "rows.made: what",
    ):
        assert part in refused.stderr
    assert steps.num_calls == 1
    (steps.work / "rows.made").write_text("")
    assert steps.once("rows", "--seq-length", "512").returncode == 0, "it is right as it is"
    assert steps.once("rows", "--seq-length", "256").returncode == 1, "and looked at again"
    assert steps.num_calls == 1
    (steps.work / "rows").unlink()
    assert steps.once("rows", "--seq-length", "512").returncode == 0
    assert steps.num_calls == 2


@pytest.mark.parametrize("work", ["work", "lr=5e-4", "two words", "a=b=c"])
@pytest.mark.parametrize("word", ["@/corpus", "code=@/corpus", "code=@/corpus/train/code.jsonl"])
def test_what_was_made_of_another_input_is_refused(tmp_path: Path, work: str, word: str) -> None:
    """In a WORK called `lr=5e-4`, what is behind the `=` was taken for the path of the input."""
    steps = Steps(tmp_path / work)
    steps.once("corpus", "--most-bytes", "10")
    steps.once("rows", "--source", word)
    assert steps.once("rows", "--source", word).returncode == 0
    (steps.work / "corpus").unlink()
    steps.once("corpus", "--most-bytes", "20")
    refused = steps.once("rows", "--source", word)
    assert refused.returncode == 1
    assert "what it is made of, have changed" in refused.stderr


@pytest.mark.parametrize("work", ["smollm2", "a", "./smollm2", "x/../smollm2"])
def test_a_folder_counts_as_the_same_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    """With `WORK=smollm2`, `examples/smollm2` was written as `examples/WORK`."""
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    steps = Steps(Path(work))
    words = ("--name", "smollm2", "a=@/x", "b=@/corpus")
    first = {"here": "/code/examples/smollm2", "CACHE": f"{work}/cache"}
    script = ("/code/examples/smollm2/corpus.py", "--packages", f"{work}/cache/corpus")
    assert steps.once("rows", *words, *script, **first).returncode == 0
    steps.work = (tmp_path / work).resolve()
    moved = {"here": "/data/examples/smollm2", "CACHE": f"{steps.work}/cache"}
    script = ("/data/examples/smollm2/corpus.py", "--packages", f"{steps.work}/cache/corpus")
    again = steps.once("rows", *words, *script, **moved)
    assert again.returncode == 0, again.stderr
    assert "kept" in again.stdout


@pytest.mark.parametrize(
    ("held", "word"),
    [
        ("corpus/corpus.json", "@/corpus"),
        ("corpus/corpus.json", "code=@/corpus/train/code.jsonl"),
        ("corpus/train/code.jsonl", "code=@/corpus/train/code.jsonl"),
        ("rows/manifest.json", "@/rows"),
        ("chats/chat_manifest.json", "@/chats"),
        ("questions.jsonl", "near=@/questions.jsonl"),
    ],
)
def test_an_input_that_holds_something_else_is_refused(steps: Steps, held: str, word: str) -> None:
    """The same words had made it: of newer packages, or by another program."""
    file = steps.work / held
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("first")
    steps.once("out", "--source", word)
    assert steps.once("out", "--source", word).returncode == 0
    file.write_text("second")
    refused = steps.once("out", "--source", word)
    assert refused.returncode == 1
    assert "what it is made of, have changed" in refused.stderr
    assert steps.num_calls == 1


def test_a_disk_without_locks_is_told_and_used(steps: Steps, tmp_path: Path) -> None:
    """Lustre is often mounted without them."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "flock").write_text("#!/bin/sh\nexit 71\n")
    (tmp_path / "bin" / "flock").chmod(0o755)
    made = steps.once("rows", PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert made.returncode == 0, made.stderr
    assert f"no file can be locked in {steps.work}: do not start a second" in made.stderr
    assert (steps.work / "rows").exists()


def test_workers_and_moved_folders_change_nothing(steps: Steps, tmp_path: Path) -> None:
    words = ("--packages", "/cache/corpus", "/somewhere/corpus.py", "a=@/x")
    steps.once("rows", *words, "--workers", "2", "--skip-bad", CACHE="/cache")
    steps.work = steps.work.rename(tmp_path / "moved here")
    words = ("--packages", "/other/corpus", "/elsewhere/corpus.py", "a=@/x")
    moved = {"CACHE": "/other", "here": "/elsewhere"}
    again = steps.once("rows", *words, "--workers", "16", "--skip-bad", **moved)
    assert again.returncode == 0, again.stderr
    assert "kept" in again.stdout
    assert steps.once("rows", *words, "--workers", "16", **moved).returncode == 1


def test_a_command_that_failed_is_run_again_with_other_words(steps: Steps) -> None:
    assert steps.once("rows", "--seq-length", "255", FAILS="1").returncode == 3
    assert not (steps.work / "rows").exists()
    assert steps.once("rows", "--seq-length", "256").returncode == 0
    assert "--seq-length 256" in (steps.work / "rows.made").read_text()


def test_what_an_earlier_version_made_is_kept(steps: Steps) -> None:
    (steps.work / "rows").mkdir()
    kept = steps.once("rows", "--seq-length", "512")
    assert kept.returncode == 0
    assert "kept" in kept.stdout
    assert not (steps.work / "calls").exists()


@pytest.mark.parametrize(
    ("words", "kills", "status"), [("", False, 0), ("", True, 0), ("--seed 2", False, 1)]
)
def test_one_process_makes_it_and_others_wait(
    tmp_path: Path, words: str, kills: bool, status: int
) -> None:
    """Two at once wrote into one unfinished corpus, and the first had documents of both. A killed
    script leaves its command running, which is no different.
    """

    def start(log: str, words: str) -> subprocess.Popen[str]:
        with (tmp_path / log).open("w") as file:
            return subprocess.Popen(
                ["bash", "-euc", SLOWLY.format(root=ROOT, words=words)],
                env={"PATH": "/usr/bin:/bin", "WORK": str(tmp_path), "here": "/somewhere"},
                stdout=file, stderr=file, text=True,
            )  # fmt: skip

    def wait_for(text: str, file: str) -> None:
        end = time.monotonic() + patience(20)
        while not (tmp_path / file).exists() or text not in (tmp_path / file).read_text():
            assert time.monotonic() < end, f"no {text!r} in {file}"
            time.sleep(0.02)

    first = start("1", "")
    try:
        wait_for("run", "calls")
        if kills:
            first.kill()
        second = start("2", words)
        wait_for("rows is being made by another process: waiting", "2")
    finally:
        (tmp_path / "go").touch()
    assert second.wait(patience(20)) == status
    assert first.wait(patience(20)) == (-signal.SIGKILL if kills else 0)
    wait_for("have changed since" if status else "is there: kept", "2")
    assert (tmp_path / "calls").read_text() == "run\n"
    assert (tmp_path / "rows").read_text() == "made\n"
    assert "--seed" not in (tmp_path / "rows.made").read_text()


def test_reports_of_several_nodes_are_made_one_after_the_other(tmp_path: Path) -> None:
    """Step 6 ends on all nodes at once: all but one failed at the folder of the other."""
    script = f"""
        . {ROOT}/examples/steps.sh
        ultralong() {{ mkdir "$5" && sleep 0.3 && touch "$5/index.html"; }}
        report_on "$WORK/results" "$WORK/report"
    """
    nodes = [
        subprocess.Popen(
            ["bash", "-euc", script],
            env={"PATH": "/usr/bin:/bin", "WORK": str(tmp_path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [node.communicate(timeout=patience(60))[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0, 0], said
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]
