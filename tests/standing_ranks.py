"""Ranks that stay between tests: a start takes many seconds of imports, a test on GPUs often one.

Every call has process groups of its own. A call that fails, or another environment, ends all ranks;
the next call starts others.
"""

from __future__ import annotations

import atexit
import importlib
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

UNTOLD = ("PYTEST_CURRENT_TEST",)  # differs in every test


class RankFailedError(Exception):
    """A rank has failed or died; the message has its trace."""


class _Rank(NamedTuple):
    process: Any
    pipe: Connection


class StandingRanks:
    """Ranks of one backend, started when a call first needs them: rank n is always one process."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._ranks: list[_Rank] = []
        self._environment: dict[str, str] = {}
        atexit.register(self.end)

    def run(self, world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Results of ``function(*args)`` on every rank.

        Raises:
            RankFailedError: on the first rank that fails; all are ended then.
        """
        environment = {name: value for name, value in os.environ.items() if name not in UNTOLD}
        if environment != self._environment:  # some of it is read at import
            self.end()
            self._environment = environment
        while len(self._ranks) < world_size:
            self._ranks.append(self._start(len(self._ranks)))
        with tempfile.TemporaryDirectory() as folder:
            call = pickle.dumps((world_size, folder, function, args))
            try:
                return self._results(call, self._ranks[:world_size])
            except BaseException:  # an interrupt too: nobody waits for the results
                self.end()
                raise

    def end(self) -> None:
        """End all ranks; those that wait for a lost one in a collective do not listen."""
        for rank in self._ranks:
            rank.process.kill()
            rank.process.join()
            rank.pipe.close()
        self._ranks = []

    def _start(self, number: int) -> _Rank:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        own, other = context.Pipe()
        options = (other, number, self._backend, self._environment)
        process = context.Process(target=_serve, args=options)
        process.start()
        other.close()
        return _Rank(process, own)

    @staticmethod
    def _results(call: bytes, ranks: list[_Rank]) -> list[Any]:
        for rank in ranks:
            rank.pipe.send_bytes(call)
        waiting = {rank.pipe: number for number, rank in enumerate(ranks)}
        results: list[Any] = [None] * len(ranks)
        while waiting:
            for pipe in wait(list(waiting)):
                number = waiting.pop(pipe)
                try:
                    has_failed, results[number] = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    ranks[number].process.join()
                    status = ranks[number].process.exitcode
                    raise RankFailedError(f"rank {number} has died: exit status {status}") from None
                if has_failed:
                    raise RankFailedError(f"rank {number}:\n{results[number]}")
        return results


def _serve(pipe: Connection, number: int, backend: str, environment: dict[str, str]) -> None:
    """Make what comes, until the other end is closed."""
    torch.set_num_threads(1)
    if backend == "nccl":  # in one order whatever comes first: extensions bring libraries
        importlib.import_module("megatron_ultralong.training.verbs")
    while True:
        try:
            world_size, folder, function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        os.environ.clear()
        os.environ.update(environment)
        os.environ.update(RANK=str(number), WORLD_SIZE=str(world_size), LOCAL_RANK=str(number))
        try:
            result = (False, _call(backend, number, world_size, folder, function, args))
        except BaseException:
            result = (True, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(result))


def _call(
    backend: str,
    number: int,
    world_size: int,
    folder: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> Any:
    """One call, whose settings of torch do not outlive it."""
    if backend == "nccl":
        torch.cuda.set_device(number)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group(backend, store=store, rank=number, world_size=world_size)
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        result = function(*args)
    finally:
        torch.use_deterministic_algorithms(is_deterministic)
        if "torch._dynamo" in sys.modules:  # it counts how often it has compiled a function
            torch._dynamo.reset()
    dist.destroy_process_group()
    if backend == "nccl":
        torch.cuda.empty_cache()  # tests of the process that asks have the same devices
    return result
