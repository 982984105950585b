"""Brings up a SLURM in namespaces of its own, and asks it as a user does at a login node."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.patience import patience
from tests.warm.programs import ROOT, warm_programs, write_program

SITE = Path(__file__).with_name("site")
PROGRAMS = ("slurmctld", "slurmd", "munged", "srun", "unshare", "nsenter", "ip")
SPANK_HEADER = Path("/usr/include/slurm/spank.h")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "DEADLINE")
PACKAGES = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"


def why_not() -> str:
    """What a cluster lacks here; empty where nothing."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"no SLURM here: {', '.join(missing)} missing ({PACKAGES})"
    if os.geteuid() != 0:
        return "SLURM's daemons need root, for namespaces of their own"
    tried = subprocess.run(
        ["unshare", "--mount", "--net", "--uts", "--pid", "--ipc", "--fork", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


def why_no_pyxis() -> str:
    """What its stand-in lacks: a plugin of SLURM is compiled."""
    if shutil.which("gcc") is None or not SPANK_HEADER.is_file():
        return "no gcc or libslurm-dev here, to compile a plugin of SLURM"
    return ""


class Cluster:
    """A head and two nodes, all of them this machine."""

    def __init__(self, folder: Path) -> None:
        """Start it; it ends with :meth:`close`, or with this process."""
        self.folder = folder
        folder.mkdir(parents=True)
        self.has_pyxis = not why_no_pyxis()
        if self.has_pyxis:
            words = ["gcc", "-Wall", "-Werror", "-shared", "-fPIC", str(SITE / "pyxis.c")]
            subprocess.run([*words, "-o", str(folder / "pyxis.so")], check=True)
        words = ["unshare", "--mount", "--net", "--uts", "--pid", "--ipc", "--fork"]
        words += ["--kill-child", "--mount-proc", "bash", str(SITE / "up.sh"), str(folder)]
        environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        self._log = (folder / "up.log").open("wb")
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=self._log, stderr=self._log, env=environment
        )
        deadline = time.monotonic() + patience(60.0)
        while not (folder / "ready").exists():
            text = f"the cluster did not come up:\n{(folder / 'up.log').read_text()}"
            assert self._process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        (self.first,) = psutil.Process(self._process.pid).children()
        self.inside = ["nsenter", f"--target={self.first.pid}", "--mount", "--net", "--uts"]
        self.inside += ["--pid", "--ipc"]
        own = folder / "bin"
        own.mkdir()
        # A warm torchrun is no parent of its ranks, and node.sh looks for them there.
        write_program(own / "torchrun", [sys.executable, "-m", "torch.distributed.run"])
        shutil.copy(SITE / "apptainer", own)
        self.environment = {
            **os.environ,
            "PATH": f"{own}:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "PYTHONPATH": str(ROOT),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "ULTRALONG_TEST_CONTAINER": f"{SITE / 'container.sh'} {folder / 'root'}",
        }

    @functools.cached_property
    def warm_environment(self) -> dict[str, str]:
        """The environment of users whose programs start warm, except for torchrun."""
        own = warm_programs(self.folder / "programs", 1, self.inside)
        path = f"{self.folder / 'bin'}:{own['PATH']}:/usr/sbin:/sbin"
        return {**own, **self.environment, "PATH": path}

    def close(self) -> None:
        """End it, with whatever runs on it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience(5.0))
        self._process.kill()
        self._process.wait()
        self._log.close()

    def run(self, *words: str, folder: Path | None = None, **environment: str) -> str:
        """Run a command of a user, by default in the repository's root; returns what it prints."""
        done = subprocess.run(
            [*self.inside, f"--wd={folder or ROOT}", *words],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=patience(60),
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def wait(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        """Look until ``condition`` holds; fails where it hangs."""
        deadline = time.monotonic() + patience(seconds)
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain:\n{self.run('squeue')}"
            time.sleep(0.1)

    def start_slurmd(self, node: str) -> None:
        """The daemon of a node comes back."""
        self.run("slurmd", "-N", node, "-f", self.environment["SLURM_CONF"])

    def processes(self) -> list[psutil.Process]:
        """All of the cluster; what has lost its parent is here too."""
        return list(self.first.children(recursive=True))

    def kill(self, *texts: str) -> int:
        """SIGKILL to each process whose command line has all of these; returns how many."""
        killed = 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if all(text in line for text in texts):
                    os.kill(process.pid, signal.SIGKILL)
                    killed += 1
        return killed


class Job:
    """A batch job, through all its starts."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number

    def _field(self, name: str) -> str:
        text = self.cluster.run("scontrol", "--oneliner", "show", "job", str(self.number))
        found = re.search(rf"\b{name}=(\S*)", text)
        assert found is not None, text
        return found[1]

    @property
    def state(self) -> str:
        """As squeue has it: ``RUNNING``."""
        return self._field("JobState")

    @property
    def restarts(self) -> int:
        return int(self._field("Restarts"))

    @property
    def exit_status(self) -> int:
        """Of the batch script."""
        return int(self._field("ExitCode").split(":")[0])

    @property
    def text(self) -> str:
        """What it has said so far, in all starts."""
        path = Path(self._field("StdOut"))
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def traces(self) -> list[str]:
        """Lines of tracebacks except for one of torchrun: the agent of the first host, which
        holds the store, can be gone before another has left their last barrier.
        """
        lines = self.text.splitlines()
        left = {line.split("]")[0] for line in lines if "Error waiting on exit barrier" in line}
        return [line for line in lines if "Traceback" in line and line.split("]")[0] not in left]

    def until_said(self, *words: str, since: str = "", seconds: float = 120.0) -> None:
        """Wait until its output, behind ``since``, has each of them; fails where it ends before."""

        def has_said() -> bool:
            has_ended, text = self.has_ended(), self.text
            _, found, rest = text.partition(since) if since else ("", "all", text)
            if found and all(word in rest for word in words):
                return True
            assert not has_ended, f"{words} not said\n{text}"
            return False

        self._wait(has_said, seconds)

    def until_ended(self, seconds: float = 180.0) -> None:
        """Wait until it will not run any more."""
        self._wait(self.has_ended, seconds)

    def until_restarted(self, times: int = 1, seconds: float = 120.0) -> None:
        """Wait until it has been put back and runs again."""
        self._wait(lambda: self.restarts == times and self.state == "RUNNING", seconds)

    def has_ended(self) -> bool:
        """Whether it is neither pending nor running."""
        return self.state in ENDED

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        try:
            self.cluster.wait(condition, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.state}\n{self.text}") from error

    def signal(self, name: str) -> None:
        """What SLURM sends the batch script before the time limit (``--signal=B:``)."""
        self.cluster.run("scancel", "--batch", f"--signal={name}", str(self.number))

    def cancel(self) -> None:
        """Cancel it, and wait until it is gone."""
        self.cluster.run("scancel", str(self.number))
        self.until_ended()

    def ranks(self) -> list[int]:
        """Process ids of its ranks, by rank."""
        found = {}
        for process in self.cluster.processes():
            with contextlib.suppress(psutil.Error):
                its = process.environ()
                if its.get("SLURM_JOB_ID") == str(self.number) and "RANK" in its:
                    found[int(its["RANK"])] = process.pid
        return [found[rank] for rank in sorted(found)]
