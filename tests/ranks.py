"""Start a function on several real ranks, over gloo or NCCL, each a process of its own.

Programs of this repository start the same way, without their imports' seconds.
"""

from __future__ import annotations

import os
import pickle
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker, spawn
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from tests.standing_ranks import StandingRanks

_gpus = StandingRanks("nccl")

FORKED = "ULTRALONG_TEST_FORKED"
"""Names a program, ``-c CODE`` of which is run by a fork of :mod:`tests.warm.server`."""


def start_forkserver() -> None:
    """Start the server of this process that ranks are forked from, with everything imported.

    A rank then starts in hundredths of a second instead of seven seconds; the server too
    where :data:`FORKED` is set.
    """
    multiprocessing.set_forkserver_preload(["tests.warm.imports"])
    resource_tracker.ensure_running()
    python = spawn.get_executable()
    multiprocessing.set_executable(os.environ.get(FORKED, python))
    try:
        forkserver.ensure_running()
    finally:
        multiprocessing.set_executable(python)


def run_on_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Results of ``function(*args)`` on every rank; a failing rank fails the test with its trace.

    The ranks meet in a file, so that test runs side by side do not collide on a port.
    """
    start_forkserver()
    return _run(world_size, function, args)


def run_on_gpus(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """The same over NCCL, a GPU each, by processes that stay for the next call."""
    return _gpus.run(world_size, function, *args)


def run_program(path: Path, *words: str) -> None:
    """Run a program of this repository as ``python path words...`` would, its imports done."""
    start_forkserver()
    multiprocessing.start_processes(
        _program, args=(path, words, dict(os.environ)), nprocs=1, start_method="forkserver"
    )


def _program(_: int, path: Path, words: tuple[str, ...], environment: dict[str, str]) -> None:
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(path), *words]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def _run(world_size: int, function: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            _rank,
            args=(world_size, folder, dict(os.environ), function, args),
            nprocs=world_size,
            start_method="forkserver",
        )
        return [
            pickle.loads((Path(folder) / f"result-{rank}").read_bytes())
            for rank in range(world_size)
        ]


def _rank(
    rank: int,
    world_size: int,
    folder: str,
    environment: dict[str, str],
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ.clear()  # the server's own is of an earlier time
    os.environ.update(environment)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        result = function(*args)
    except BaseException:  # the other ranks fail too, on a lost peer: say which one was first
        sys.stderr.write(f"rank {rank}:\n{traceback.format_exc()}")
        sys.stderr.flush()
        raise
    dist.destroy_process_group()
    (Path(folder) / f"result-{rank}").write_bytes(pickle.dumps(result))
