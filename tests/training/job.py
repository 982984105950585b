"""A run on real gloo ranks that a test can watch, signal and kill."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from megatron_ultralong.cli import main
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.training.config_file import save_config
from tests.patience import patience
from tests.ranks import start_forkserver
from tests.warm.torchrun import torchrun

_log = logging.getLogger(__name__)
START_SECONDS = 60.0
"""Time for a loaded machine to bring ranks to their first step."""


class Job:
    """``ultralong pretrain --config`` on every rank; all ranks are dead when it is left."""

    def __init__(
        self,
        config: PretrainConfig,
        world_size: int,
        prepare: Callable[[int], None] | None = None,
        restart: int = 0,
    ) -> None:
        """Start it; ``prepare(rank)`` runs on every rank before."""
        self.config = config
        self.folder = Path(tempfile.mkdtemp())
        save_config(self.folder / "config.yaml", config)
        start_forkserver()
        context: Any = multiprocessing.get_context("forkserver")
        environment = {**os.environ, "TORCHELASTIC_RESTART_COUNT": str(restart)}
        self.ranks: list[ForkServerProcess] = [
            context.Process(
                target=_rank, args=(rank, world_size, self.folder, environment, config, prepare)
            )
            for rank in range(world_size)
        ]
        for rank in self.ranks:
            rank.start()

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL to every rank."""
        for rank in self.ranks:
            if rank.is_alive():
                rank.kill()
            rank.join()

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one rank."""
        pid = self.ranks[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def wait(self, seconds: float = 120.0) -> list[int]:
        """Exit statuses of all ranks; fails where one hangs."""
        start = time.monotonic()
        deadline = start + patience(seconds)
        for number, rank in enumerate(self.ranks):
            rank.join(max(deadline - time.monotonic(), 0.01))
            assert rank.exitcode is not None, f"rank {number} still runs:\n{self.text(number)}"
        statuses = [int(rank.exitcode or 0) for rank in self.ranks]
        _log.info("all ranks ended after %.1f s: %s", time.monotonic() - start, statuses)
        return statuses

    def text(self, rank: int) -> str:
        """What a rank has said."""
        path = self.folder / f"said-{rank}"
        return path.read_text(errors="replace") if path.exists() else ""

    def until(
        self, condition: Callable[[], bool], seconds: float = START_SECONDS, every: float = 0.02
    ) -> bool:
        """Wait until ``condition`` holds; False where the ranks ended before it did.

        It is asked ``every`` so many seconds, on a core that the ranks want too.
        """
        deadline = time.monotonic() + patience(seconds)
        while not condition():
            if not any(rank.is_alive() for rank in self.ranks):
                return condition()
            assert time.monotonic() < deadline, f"waited in vain:\n{self.text(0)}"
            time.sleep(every)
        return True

    def until_iteration(self, iteration: int) -> bool:
        """Wait until the log has that iteration."""
        root = Path(self.config.save)
        # Every iteration has a line, some have two.
        return self.until(lambda: num_lines(root) >= iteration and iteration in losses(root))


def _rank(
    rank: int,
    world_size: int,
    folder: Path,
    environment: dict[str, str],
    config: PretrainConfig,
    prepare: Callable[[int], None] | None,
) -> None:
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    said = os.open(folder / f"said-{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(1), "w", buffering=1) for _ in range(2))
    minutes = config.parallel.distributed_timeout_minutes
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(folder / "store"), world_size),
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(minutes=minutes),
    )
    if prepare is not None:
        prepare(rank)
    main(["pretrain", "--config", str(folder / "config.yaml")])


def losses(root: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm by iteration, as the log has them; the last line of each counts."""
    path = root / "log.jsonl"
    if not path.exists():
        return {}
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    records = [json.loads(line) for line in lines]
    return {record["iteration"]: (record["lm_loss"], record["grad_norm"]) for record in records}


def every_loss(root: Path) -> dict[int, set[tuple[float, float]]]:
    """All that the log has of every iteration: one value each, where restarts repeat exactly."""
    found: dict[int, set[tuple[float, float]]] = {}
    for line in (root / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        found.setdefault(record["iteration"], set()).add((record["lm_loss"], record["grad_norm"]))
    return found


def num_lines(root: Path) -> int:
    """Lines in the log of a run, those of all its starts."""
    path = root / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@dataclasses.dataclass
class TorchrunJob:
    """``ultralong pretrain`` under torchrun itself."""

    process: subprocess.Popen[bytes] | ForkServerProcess
    said: Path

    @classmethod
    def start(
        cls,
        config: PretrainConfig,
        folder: Path,
        num_ranks: int,
        *options: str,
        cold: bool = False,
        **environment: str,
    ) -> TorchrunJob:
        """Start it, with ``options`` for torchrun, and more ``environment``.

        ``cold``: by new interpreters, as a user does, instead of :mod:`tests.warm.torchrun`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        save_config(folder / "config.yaml", config)
        said = folder / "said"
        said.touch()
        words = ["--standalone", "--nproc-per-node", str(num_ranks), *options]
        words += ["-m", "megatron_ultralong", "pretrain", "--config", str(folder / "config.yaml")]
        environment = {**os.environ, **environment}
        if not cold:
            start_forkserver()
            context: Any = multiprocessing.get_context("forkserver")
            forked = context.Process(target=torchrun, args=(said, words, environment))
            forked.start()
            return cls(forked, said)
        with said.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        return cls(process, said)

    @property
    def status(self) -> int | None:
        """The exit status of torchrun, none while it runs."""
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll()
        return self.process.exitcode

    @property
    def text(self) -> str:
        """What torchrun and the ranks have said."""
        return self.said.read_text(errors="replace")

    def ranks(self) -> list[int]:
        """Process ids of the ranks, by rank; not of a cold start."""
        children = psutil.Process(self.process.pid).children()
        names = {child.name(): child.pid for child in children}
        return [names[f"rank {rank}"] for rank in range(len(names))]

    def until_more(self, root: Path, lines: int = 3, seconds: float = 200.0) -> None:
        """Wait until the log has so many lines more than now."""
        before, deadline = num_lines(root), time.monotonic() + patience(seconds)
        while num_lines(root) < before + lines:
            assert self.status is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.01)

    def until_gone(self, seconds: float) -> None:
        """Wait until nothing of the job is left; fails where something hangs."""
        start = time.monotonic()
        while self.status is None or self.processes():
            assert time.monotonic() < start + patience(seconds), self.text
            time.sleep(0.05)
        _log.info("torchrun and its ranks were gone after %.1f s", time.monotonic() - start)

    def processes(self) -> list[int]:
        """What is left of torchrun, its ranks (each in a session of its own) and theirs."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{process.pid}/fd/2") == str(self.said):
                    found.append(process.pid)
        return found

    def kill(self) -> None:
        """End whatever is left of it."""
        while self.status is None or self.processes():
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
