"""sbatch, srun, scontrol, scancel, squeue and apptainer, as far as our scripts use them.

``python -m tests.slurm.programs NAME ARGUMENTS...``, with ``FAKE_SLURM`` the folder that
:class:`tests.slurm.cluster.Cluster` watches. An option that is not known here is an error, as it is
there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import NoReturn

import psutil

_SBATCH = {
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "exclusive", "mem", "time", "signal",
    "requeue", "no-requeue", "open-mode", "output", "dependency",
}  # fmt: skip
_SRUN = {"nodes", "ntasks", "ntasks-per-node", "kill-on-bad-exit"}
_PYXIS = {"container-image", "container-mounts", "container-workdir"}
_FLAGS = {"exclusive", "requeue", "no-requeue", "nv", "noheader"}


def parse(words: list[str], known: set[str]) -> tuple[dict[str, str], list[str]]:
    """Options before the first other word, and the rest."""
    options: dict[str, str] = {}
    rest = list(words)
    while rest and rest[0].startswith("--"):
        name, has_value, value = rest.pop(0)[2:].partition("=")
        if name not in known:
            sys.exit(f"unrecognized option '--{name}'")
        if not has_value and name not in _FLAGS:
            value = rest.pop(0)
        options[name] = value
    return options, rest


def ask(**request: object) -> None:
    """Hand a request to the controller."""
    folder = Path(os.environ["FAKE_SLURM"]) / "requests"
    aside = folder / f".{time.time_ns():020}-{uuid.uuid4().hex}"  # taken in this order
    aside.write_text(json.dumps(request))
    aside.rename(folder / f"{aside.name[1:]}.json")


def sbatch(words: list[str]) -> int:
    """Options of the command line stand above those of the script."""
    options, rest = parse(words, _SBATCH)
    script = Path(rest[0])
    lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    inside, _ = parse([line.split(maxsplit=1)[1] for line in lines], _SBATCH)
    root = Path(os.environ["FAKE_SLURM"])
    number = int((root / "first").read_text())
    while True:
        with contextlib.suppress(FileExistsError):
            (root / "jobs" / str(number)).mkdir()
            break
        number += 1
    (root / "jobs" / str(number) / "slurm_script").write_text(script.read_text())
    ask(
        verb="submit",
        job=number,
        options={**inside, **options},
        arguments=rest[1:],
        environment=dict(os.environ),
        folder=os.getcwd(),
    )
    sys.stdout.write(f"Submitted batch job {number}\n")
    return 0


def srun(words: list[str]) -> int:
    """A task for every node; signals go to every process of every task."""
    options, command = parse(words, _SRUN | _PYXIS)
    if "container-image" in options:
        assert Path(options["container-image"]).exists(), "no such image"
        assert Path(options["container-mounts"].split(":")[0]).is_dir(), "no such mount"
    tasks = [
        subprocess.Popen(
            command,
            cwd=options.get("container-workdir"),
            start_new_session=True,
            env={**os.environ, "SLURM_NODEID": str(n), "SLURM_PROCID": str(n)},
        )
        for n in range(int(options["ntasks"]))
    ]

    def hand_on(number: int, frame: object) -> None:
        signal_tasks([task.pid for task in tasks], number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, hand_on)
    statuses = [task.wait() for task in tasks]
    return max(128 - status if status < 0 else status for status in statuses)


def signal_tasks(tasks: list[int], number: int) -> None:
    """As slurmstepd does: every process below, whatever its session."""
    for pid in tasks:
        with contextlib.suppress(psutil.NoSuchProcess):
            task = psutil.Process(pid)
            for process in (task, *task.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)


def scontrol(words: list[str]) -> int:
    if words[:2] == ["show", "hostnames"]:
        assert words[2] == os.environ["SLURM_JOB_NODELIST"]
        sys.stdout.write("localhost\n" * int(os.environ["SLURM_JOB_NUM_NODES"]))
        return 0
    assert words[0] == "requeue", words
    ask(verb="requeue", job=int(words[1]))
    signal.pause()  # the job's processes are killed before scontrol answers
    return 0


def squeue(words: list[str]) -> int:
    options, _ = parse(words, {"noheader", "jobs", "format"})
    assert options["format"] == "%T", options
    sys.stdout.write(
        (Path(os.environ["FAKE_SLURM"]) / "jobs" / options["jobs"] / "state").read_text()
    )
    return 0


def scancel(words: list[str]) -> int:
    options, jobs = parse(words, {"state", "name", "user"})
    ask(verb="cancel", jobs=[int(job) for job in jobs], **options)
    return 0


def apptainer(words: list[str]) -> NoReturn:
    assert words[0] == "exec"
    options, rest = parse(words[1:], {"nv", "bind", "pwd"})
    assert Path(options["bind"].split(":")[0]).is_dir(), "no such mount"
    assert Path(rest[0]).exists(), "no such image"
    os.chdir(options["pwd"])
    os.execvp(rest[1], rest[1:])


PROGRAMS = {
    "sbatch": sbatch,
    "srun": srun,
    "scontrol": scontrol,
    "squeue": squeue,
    "scancel": scancel,
    "apptainer": apptainer,
}

if __name__ == "__main__":
    sys.exit(PROGRAMS[sys.argv[1]](sys.argv[2:]))
