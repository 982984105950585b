"""Attempts that all ranks make together: one that fails on any rank has failed on all."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from .contest import Groups, UnableError, one_line, synchronize

Found = TypeVar("Found")

SECONDS_TO_ABORT = 60.0  # until a rank that was set free must be back


def _forget_frames(error: BaseException | None) -> None:
    """Of an error and of those that led to it: they hold tensors and groups."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


class AttemptError(Exception):
    """An attempt failed on some rank; the message has its number and why, the same on all ranks."""


class Agreement:
    """Who fails says so in the store, and sets free those who wait for it in a collective.

    A rank inside a kernel of NCCL raises nothing. So a thread looks meanwhile whether another rank
    has failed, or too much time has passed, and aborts the groups of the contestants.
    """

    def __init__(self, groups: Groups, seconds: float) -> None:
        """``seconds``: of one attempt, after which it has failed."""
        self._groups, self._seconds = groups, seconds
        store = distributed_c10d._get_default_store()
        # A connection of its own: the other is busy while a communicator is made.
        self._store = store.clone() if hasattr(store, "clone") else store
        self._number = 0

    def attempt(self, call: Callable[[], Found], sends: bool = True) -> Found:
        """What ``call`` returns on this rank, if it returns on every rank.

        Args:
            call: the same on all ranks.
            sends: it uses the groups, which are then made again if it fails.

        Raises:
            AttemptError: on all ranks, with the reason of the one that failed first.
        """
        self._number += 1  # all ranks make the same attempts
        key = f"attempt {self._number} failed"
        is_done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(key, is_done), daemon=True)
        watcher.start()
        found: list[Found] = []
        try:
            found.append(call())
            synchronize(self._groups.device)
        except Exception as error:
            is_of_all = isinstance(error, UnableError) or self._groups.size == 1
            self._tell(key, ("" if is_of_all else f"rank {self._groups.rank}: ") + one_line(error))
            _forget_frames(error)
            if sends:
                gc.collect()
                self._groups.abandon()
        finally:
            is_done.set()
            watcher.join()
        if self._has_failed(key, not found):
            found.clear()
            if sends:
                self._groups.renew()
            if self._groups.device.type == "cuda":
                torch.cuda.empty_cache()
            raise AttemptError(self._store.get(key).decode())
        return found[0]

    def _has_failed(self, key: str, is_own: bool) -> bool:
        """Whether any rank has, once all are here."""
        dist.barrier()
        flag = torch.tensor(int(is_own or self._store.check([key])))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def _tell(self, key: str, reason: str) -> None:
        """The first one counts: the others have lost a peer."""
        self._store.compare_set(key, "", reason)

    def _watch(self, key: str, is_done: threading.Event) -> None:
        start = time.monotonic()
        while not is_done.wait(0.2):
            late = time.monotonic() - start > self._seconds
            if late:
                self._tell(key, f"not done after {self._seconds:.0f} s")
            if late or self._store.check([key]):
                break
        else:
            return
        if not is_done.wait(1.0) and self._groups.device.type == "cuda":
            self._groups.abandon()
        if not is_done.wait(SECONDS_TO_ABORT):
            print(f"(rank {self._groups.rank} does not come back from an attempt that failed: "
                  f"{self._store.get(key).decode()})", flush=True)  # fmt: skip
            os._exit(1)  # torchrun ends the others
