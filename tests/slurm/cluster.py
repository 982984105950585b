"""What slurmctld does: starts jobs, signals them, puts them back into the queue."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.patience import patience
from tests.slurm.programs import PROGRAMS, signal_tasks
from tests.warm.programs import write_program

_ROOT = Path(__file__).parent.parent.parent
NUM_NODES = 2


@dataclasses.dataclass
class Job:
    """A batch job, through all its starts."""

    number: int
    folder: Path
    """Of the controller; its file ``state`` is what squeue prints."""
    options: dict[str, str]
    arguments: list[str]
    environment: dict[str, str]
    submit_folder: Path
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    exit_status: int | None = None

    @property
    def state(self) -> str:
        return (self.folder / "state").read_text()

    @state.setter
    def state(self, value: str) -> None:
        aside = self.folder / "state.partial"
        aside.write_text(value)
        aside.rename(self.folder / "state")

    @property
    def name(self) -> str:
        return self.options["job-name"]

    @property
    def output(self) -> Path:
        name = self.options["output"].replace("%x", self.name).replace("%j", str(self.number))
        return self.submit_folder / name

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def tasks(self) -> list[int]:
        """Process ids of what its sruns have started."""
        if self.process is None:
            return []
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "srun" in child.cmdline():
                        found += [task.pid for task in child.children()]
        return found


class Cluster:
    """Two nodes, both this machine; one job at a time."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root = root
        self.jobs: dict[int, Job] = {}
        for name in ("requests", "jobs", "bin"):
            (root / name).mkdir(parents=True)
        # Ports are made of job numbers: those of two tests side by side should differ.
        (root / "first").write_text(str(os.getpid() % 15000))
        for name in PROGRAMS:
            words = [sys.executable, "-m", "tests.slurm.programs", name]
            write_program(root / "bin" / name, words)
        # A warm torchrun is no parent of its ranks, and node.sh looks for them there.
        write_program(root / "bin" / "torchrun", [sys.executable, "-m", "torch.distributed.run"])
        self.environment = {
            **environment,
            "PATH": f"{root / 'bin'}:{environment['PATH']}",
            "PYTHONPATH": str(_ROOT),
            "FAKE_SLURM": str(root),
            "USER": "someone",
        }

    def run(self, *words: str, **environment: str) -> str:
        """Run a command of a user at the login node, in the repository's root."""
        done = subprocess.run(
            words,
            cwd=self.root,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=patience(60),
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        self.tick()
        return done.stdout

    def wait(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        """Do the controller's work until ``condition`` holds."""
        deadline = time.monotonic() + patience(seconds)
        while not condition():
            self.tick()
            text = "\n".join(f"{job.state}\n{job.text}" for job in self.jobs.values())
            assert time.monotonic() < deadline, text
            time.sleep(0.02)

    def wait_for_all(self) -> None:
        """Until no job is pending or running."""
        self.wait(
            lambda: all(job.state not in ("PENDING", "RUNNING") for job in self.jobs.values())
        )

    def near_limit(self, job: Job) -> None:
        """The time is nearly over: signal as ``--signal`` says."""
        where, _, rest = job.options["signal"].rpartition(":")
        number = signal.Signals["SIG" + rest.split("@")[0]]
        assert job.process is not None
        if where == "B":
            os.kill(job.process.pid, number)
        else:
            signal_tasks(job.tasks(), number)

    def preempt(self, job: Job) -> None:
        """SIGTERM to every process of the steps; the batch shell gets none."""
        assert job.tasks(), "no step runs"
        signal_tasks(job.tasks(), signal.SIGTERM)

    def tick(self) -> None:
        """Take requests, see what has ended, start what may begin."""
        for path in sorted((self.root / "requests").glob("*.json")):
            request = json.loads(path.read_text())
            path.unlink()
            getattr(self, f"_{request.pop('verb')}")(**request)
        for job in self.jobs.values():
            if job.process is not None and job.process.poll() is not None:
                job.exit_status, job.process = job.process.returncode, None
                job.state = "COMPLETED" if job.exit_status == 0 else "FAILED"
        if not any(job.state == "RUNNING" for job in self.jobs.values()):
            for job in sorted(self.jobs.values(), key=lambda job: job.number):
                if job.state == "PENDING":
                    self._start(job)
                    break

    def kill(self) -> None:
        """End whatever runs."""
        for job in self.jobs.values():
            self._kill(job)

    def _submit(
        self,
        job: int,
        options: dict[str, str],
        arguments: list[str],
        environment: dict[str, str],
        folder: str,
    ) -> None:
        assert options.get("dependency", "singleton") == "singleton"
        new = Job(job, self.root / "jobs" / str(job), options, arguments, environment, Path(folder))
        new.state = "PENDING"
        self.jobs[job] = new

    def _start(self, job: Job) -> None:
        number = {"SLURM_RESTART_COUNT": str(job.restarts)} if job.restarts else {}
        job.state = "RUNNING"
        with job.output.open("ab") as output:
            job.process = subprocess.Popen(
                ["bash", str(job.folder / "slurm_script"), *job.arguments],
                cwd=job.submit_folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **job.environment,
                    "SLURM_JOB_ID": str(job.number),
                    "SLURM_JOB_NAME": job.name,
                    "SLURM_JOB_NODELIST": f"node[1-{NUM_NODES}]",
                    "SLURM_JOB_NUM_NODES": str(NUM_NODES),
                    "SLURM_SUBMIT_DIR": str(job.submit_folder),
                    **number,
                },
            )

    def _requeue(self, job: int) -> None:
        it = self.jobs[job]
        assert "no-requeue" not in it.options, "may not be requeued"
        self._kill(it)
        it.restarts += 1
        it.state = "PENDING"

    def _cancel(self, jobs: list[int], state: str = "", name: str = "", user: str = "") -> None:
        for job in self.jobs.values():
            named = job.number in jobs or (not jobs and job.name == name and user == "someone")
            if named and job.state == (state or job.state):
                self._kill(job)
                job.state = "CANCELLED"

    @staticmethod
    def _kill(job: Job) -> None:
        if job.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            batch = psutil.Process(job.process.pid)
            for process in (*batch.children(recursive=True), batch):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        job.process.wait()
        job.process = None
