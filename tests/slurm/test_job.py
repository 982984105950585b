"""What job.sh reads of a step, without a scheduler.

Its functions and node.sh are the real ones; SLURM's commands and `ultralong` are stand-ins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.config.command_line import parse
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.program.journal import Journal, open_journal
from megatron_ultralong.program.output import output_folder
from tests.patience import patience
from tests.slurm.conftest import SCRIPTS
from tests.warm.programs import write_program

SLURM = r"""
srun() {
    while [ "$1" != bash ]; do shift; done
    SLURM_NODEID=0 SLURM_STEP_NUM_NODES=1 command "$@"
}
scontrol() { if [ "$1" = requeue ]; then echo "put back"; else echo node1; fi; }
squeue() { echo RUNNING; }
scancel() { echo "scancel $*"; }
sleep() { command sleep "$((${1%.*} > 0))e-2"; }
export -f sleep
"""
KILLED = "kill -KILL $PPID"
"""An `ultralong` whose node is lost."""


class Shell:
    """Starts of one job, each a shell that has sourced job.sh."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "program.sh"
        (folder / "bin").mkdir()
        write_program(folder / "bin" / "ultralong", ["bash", str(self.program)])
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "CONTAINER": "none",
            "GPUS_PER_NODE": "0",
            "LOGS": str(folder / "logs"),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NAME": "ultralong",
            "SLURM_JOB_NODELIST": "node1",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_USER": "me",
        }

    def run(self, text: str, ultralong: str = "", **environment: str) -> tuple[int, str]:
        """Exit status and output of a batch script that continues with ``text``."""
        self.program.write_text(ultralong)
        head = f"set -euo pipefail\nscripts=${{SCRIPTS:-{SCRIPTS}}}\nsource {SCRIPTS}/job.sh\n"
        done = subprocess.run(
            ["bash", "-c", f"{SLURM}{head}{text}"],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=patience(60),
            check=False,
        )
        return done.returncode, done.stdout


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


NTH = "echo >> calls; case $(wc -l < calls) in %s) %s ;; *) exit 0 ;; esac"


@pytest.mark.parametrize("second", ["prepare", "prepare chat", "convert verify", "generate"])
def test_a_second_step_of_one_name_is_its_own(shell: Shell, second: str) -> None:
    """Lost, it is not complete; slow, it is not killed because the first has ended."""
    text = f"run {second} one; run {second} two; complete"
    if second == "prepare chat":
        text = f"run prepare one; run {second} two; complete"
    status, said = shell.run(text, NTH % (2, KILLED))
    assert status == 75, said
    assert "the run was lost: requeue\n" in said
    (shell.folder / "calls").unlink()
    slow = NTH % (2, "command sleep 0.5; touch done")
    status, said = shell.run(text, slow, WAIT_SECONDS="0")
    assert status == 0, said
    assert (shell.folder / "done").exists(), said
    assert said.count("start 0 of") == 2
    assert len(list((shell.folder / "logs" / "job-7-0").glob("*/exit_status"))) == 2


def test_files_of_an_earlier_job_of_that_number_are_not_read(shell: Shell) -> None:
    assert shell.run("run generate one; complete")[0] == 0
    (shell.folder / "logs" / "job-7-0" / "stop").touch()
    status, said = shell.run("run generate one; complete", KILLED)
    assert status == 75, said
    status, said = shell.run("run generate one; complete", "touch ran")
    assert status == 0, said
    assert (shell.folder / "ran").exists(), "told to stop by an earlier job"


def starts(shell: Shell, text: str, ultralong: str, most: int = 6, **environment: str) -> int:
    """Starts of a job that is requeued as often as it asks: until it gives up, or ``most``."""
    for start in range(most):
        environment["SLURM_RESTART_COUNT"] = str(start)
        status, said = shell.run(text, ultralong, **environment)
        if status != 75:
            assert (status, "3 starts in a row ended without progress" in said) == (1, True), said
            return start + 1
    return most


ROOM = "mkdir -p out/.rows.partial/shards-reference; cd out/.rows.partial; "


@pytest.mark.parametrize(
    ("ultralong", "expected"),
    [
        ("head -c $RANDOM /dev/zero > scratch; ", 3),
        ("echo $RANDOM$RANDOM >> owner-000001.json; ", 3),
        ("mkdir -p shards-reference/shard-00001.partial-$$; ", 3),
        ("printf torn >> finished.jsonl; ", 3),
        ("date +%N > work.json; rm -f owner-*; touch owner-$$.json; ", 3),
        ("echo {} >> finished.jsonl; ", 6),
        ("mkdir shards-reference/shard-$(printf %05i $(ls shards-reference | wc -l)); ", 6),
        # lost and made again is nothing new
        (
            "if ! rm finished.jsonl; then echo {} > finished.jsonl; fi; ",
            4,
        ),
    ],
)
def test_only_more_finished_parts_are_progress(shell: Shell, ultralong: str, expected: int) -> None:
    text = "run prepare --output out/rows; complete"
    assert starts(shell, text, ROOM + ultralong + KILLED) == expected
    if expected < 6:  # given up: a start by hand counts from the beginning
        assert not list((shell.folder / "logs").glob("starts-*"))


def test_a_step_that_is_complete_each_time_does_not_reset_the_count(shell: Shell) -> None:
    text = "run generate --load x; run evaluate report --output page; complete"
    assert starts(shell, text, f'[ "$1" = generate ] || {KILLED}') == 3


def test_starts_that_slurm_kills_with_the_script_are_counted(shell: Shell) -> None:
    text = "run evaluate ruler --output out; complete"
    for start in range(3):
        status, said = shell.run(text, "kill -KILL $(ps -o ppid= -p $(ps -o ppid= -p $PPID))",
                                 SLURM_RESTART_COUNT=str(start))  # fmt: skip
        assert status == -9, said
    status, said = shell.run(text, "exit 0", SLURM_RESTART_COUNT="3")
    assert (status, "without progress" in said) == (1, True), said


def progress(shell: Shell, words: str, **environment: str) -> int:
    status, said = shell.run(f"begin {words}; progress", **environment)
    assert status == 0, said
    return int(said)


class Lost(BaseException):
    """As a kill: what is unfinished stays."""


@pytest.mark.parametrize("others", [{}, {"OUTPUT": "/elsewhere"}])
def test_progress_is_what_the_journals_of_the_verbs_have(
    shell: Shell, others: dict[str, str]
) -> None:
    out = shell.folder / "results"

    def add(output: Path, count: int, *, ends: bool) -> None:
        with (
            contextlib.suppress(Lost),
            open_journal(output, "ruler", {"of": output.name}, is_main=True) as journal,
        ):
            for number in range(count):
                journal.add(f"{output.name} {len(journal.entries)} {number}", {"score": 1.0})
            if not ends:
                raise Lost

    words = "evaluate ruler --load a=x b=y --output=results/"
    assert progress(shell, words, **others) == 0
    for name, count, ends, expected in (
        ("a", 3, False, 3), ("a", 2, False, 5), ("a", 1, True, 6), ("b", 4, False, 10),
    ):  # fmt: skip
        add(out / name, count, ends=ends)
        assert progress(shell, words, **others) == expected
    add(shell.folder / "one", 2, ends=False)
    assert progress(shell, "evaluate ruler --output one", **others) == 2
    link = shell.folder / "link"
    link.symlink_to(shell.folder / "far" / "one")
    add(link, 3, ends=False)
    assert progress(shell, "evaluate ruler --output link", **others) == 3

    with (
        contextlib.suppress(Lost),
        output_folder(shell.folder / "dst", "convert", {"from": "a"}) as made,
    ):
        journal = Journal(made, "tensors")
        for number in range(7):
            journal.add(str(number), {})
        raise Lost
    for words in ("convert import src dst --no-verify", "convert export --format gguf src ./dst/"):
        assert progress(shell, words, **others) == 7
    assert progress(shell, "convert verify src dst", **others) == 0


def flags_of(config: Any) -> list[list[str]]:
    """Each flag of a class in the ways to write it, with a value that it takes."""
    found: list[list[str]] = []
    for field in dataclasses.fields(config):
        name = {"engines": "for"}.get(field.name, field.name.replace("_", "-"))
        kind = getattr(field.type, "__name__", str(field.type))
        if field.name in ("src", "dst"):
            continue
        if kind == "bool":
            found += [[f"--{name}"], [f"--no-{name}"]]
        elif kind == "RopeConfig":
            found += flags_of(RopeConfig)
        else:
            value = {"iteration": 3, "engines": "vllm"}.get(field.name, field.default)
            found += [[f"--{name}", str(value)], [f"--{name}={value}"]]
    return found


@pytest.mark.parametrize(("verb", "config"), [("import", ImportConfig), ("export", ExportConfig)])
def test_the_destination_of_a_conversion_is_found_among_its_flags(
    shell: Shell, verb: str, config: Any
) -> None:
    """As the program itself reads the words."""
    generator = random.Random(5)
    flags = flags_of(config)
    lines, expected = [], []
    for number in range(24):
        chosen = generator.sample(flags, 3) if number else []
        if number == 1:
            chosen = [["--no_verify"], ["--json"]]
        order = list(chosen)
        for place, word in zip(
            sorted(generator.sample(range(len(chosen) + 2), 2)),
            ("src", f"dst-{number}"),
            strict=True,
        ):
            order.insert(place, [word])
        words = [word for group in order for word in group]
        expected.append(str(parse(config, "ultralong convert", words).dst))
        lines.append(f"destination_of {' '.join(words)}")
    every = [f"destination_of {' '.join(words)} src every" for words in flags]
    for words in flags:
        parse(config, "ultralong convert", [*words, "src", "every"])
    status, said = shell.run("\n".join(lines + every))
    assert (status, said.split()) == (0, expected + ["every"] * len(every))


@pytest.mark.parametrize(
    ("environment", "cancelled"),
    [
        ({"REQUEUE": "0"}, False),
        ({"REQUEUE": "0", "CHAIN": "11-22"}, False),  # a name of the user's
        ({"REQUEUE": "0", "CHAIN": "11-22", "SLURM_JOB_NAME": "ultralong-run-11-22"}, True),
        ({}, False),
    ],
)
@pytest.mark.parametrize("ending", ["complete", "finish 2 text", "run generate x"])
def test_only_jobs_of_the_own_chain_are_cancelled(
    shell: Shell, environment: dict[str, str], cancelled: bool, ending: str
) -> None:
    _, said = shell.run(ending, "exit 65", **environment)
    assert ("scancel" in said) == cancelled, said
    if cancelled:
        assert "scancel --state=PENDING --name=ultralong-run-11-22 --user=me" in said


def test_two_chains_have_two_names(tmp_path: Path) -> None:
    text = f'sbatch() {{ echo "$2"; }}; export -f sbatch; bash {SCRIPTS}/submit_chain.sh 2 script'
    names = []
    for _ in range(2):
        done = subprocess.run(
            ["bash", "-c", text],
            env={"PATH": "/usr/bin:/bin", "SAVE": "runs/one/"},
            capture_output=True,
            text=True,
            check=True,
        )
        first, second = done.stdout.split()
        assert first == second
        assert first.startswith("ultralong-one-")
        names.append(first)
    assert names[0] != names[1]


@pytest.mark.parametrize("container", ["pyxis", "apptainer"])
@pytest.mark.parametrize(
    ("logs", "save", "expected"),
    [
        ("own/logs", "run", "own/logs"),
        ("", "deep/run/", "deep/run-logs"),
        ("", "", "ultralong-logs"),
    ],
)
def test_logs_and_scripts_are_mounted_by_whole_paths(
    shell: Shell, container: str, logs: str, save: str, expected: str
) -> None:
    scripts = shell.folder / "other" / "slurm"
    scripts.mkdir(parents=True)
    home = shell.folder / "home"
    home.mkdir()
    text = f"cd {home}; begin pretrain {f'--save {save}' if save else ''}; echo ${{container[@]}}"
    status, said = shell.run(
        f"cd {home}; scripts=../other/slurm; source {SCRIPTS}/job.sh; {text}",
        CONTAINER=container, IMAGE="image", MOUNTS="/data:/data", LOGS=logs,
    )  # fmt: skip
    assert status == 0, said
    where = home / expected
    mounts = [f"{path}:{path}" for path in ("/data", home, where, scripts.parent)]
    assert ",".join(mounts) in said
    assert where.is_dir()


def test_the_last_of_two_equal_flags_counts(shell: Shell) -> None:
    """As for the program."""
    status, said = shell.run("value_of --save --save a --save=b; value_of --save --save=b --save a")
    assert (status, said.split()) == (0, ["b", "a"])


STEP = f"stage {SCRIPTS.parent}/llama3.1-8b/05_sft.sh 1m"


def test_a_stage_looks_first_for_what_it_needs_where_its_steps_run(shell: Shell) -> None:
    """Its last command would miss it after hours. Nobody's look is no refusal."""
    work = shell.folder / "work"
    status, said = shell.run(STEP, "echo began >> began", WORK=f"{work}")
    assert status == 2, said
    for lack in (f"{work}/run-1m, of step 5, is not there", f"no file is {work}/chats/"):
        assert said.count(lack) == 1, said
    assert "bad input: the messages stand above" in said
    assert not (shell.folder / "began").exists()
    for name in ("run-1m", "chats-1m"):
        (work / name).mkdir(parents=True)
    write_program(shell.folder / "bin" / "torchrun", ["false"])
    status, said = shell.run(STEP, "echo began >> began; exit 2", WORK=f"{work}")
    assert "is not there" not in said
    assert (shell.folder / "began").exists(), said
    (shell.folder / "began").unlink()
    lost = "srun() { return 9; }\n"
    status, said = shell.run(lost + STEP, "", WORK=f"{work}")
    assert "check_needs.sh did not run on the node (status 9)" in said


@pytest.mark.parametrize("number", ["USR1", "TERM"])
def test_a_stage_that_waits_for_another_process_hears_that_its_time_is_over(
    shell: Shell, number: str
) -> None:
    """The shell waited in ``flock``, and took the signal when the lock was free, or never.

    TERM comes to all processes of a job, ``flock`` too.
    """
    script = shell.folder / "stage.sh"
    script.write_text(f". {SCRIPTS.parent}/steps.sh; once $WORK/out ultralong prepare one\n")
    others = " $(cat /proc/$$/task/$$/children)" if number == "TERM" else ""
    text = f"( command sleep 1; kill -{number} $${others} ) & stage {script}"
    with (shell.folder / "out.made").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        status, said = shell.run(text, "touch ran", WORK=str(shell.folder), here="/somewhere")
    assert "is being made by another process: waiting" in said
    assert status == 75, said
    assert "stopped while it waited for another process: requeue\nput back\n" in said
    assert not (shell.folder / "ran").exists()
