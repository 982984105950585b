"""A gather and a broadcast through the job's store, for threads beside the collectives."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator

import torch.distributed as dist

_CHUNK = 2**22
"""Bytes of a value of the store at most: torch's refuses those of 8 MiB."""
_FIRST_SECONDS, _HURRIED_SECONDS, _LONGEST_SECONDS = 0.01, 0.1, 0.5
"""Between two looks for a value, which become rarer."""


class StoreGoneError(Exception):
    """The job's store cannot be reached: it went with torchrun, or with the first rank."""


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # that of torch, of any kind
        raise StoreGoneError(f"{error}") from error


class StoreGather:
    """Once, in a thread of each rank: the main one makes one text of those of all, for all.

    Collectives are for the main threads of ranks, which compute and wait for each other meanwhile.
    torch's own gather through a store waits inside the store's client, for which others wait then.
    """

    def __init__(self, name: str, timeout_seconds: float) -> None:
        """Every rank makes it, under the same ``name``, which no other gather of the job has.

        From :meth:`hurry` on, a rank waits for the others ``timeout_seconds`` at most.
        """
        self._rank, self._size = 0, 1
        if dist.is_initialized():
            self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self._name = f"gather/{name}"
        self._timeout = timeout_seconds
        self._deadline = math.inf
        if self._size > 1:
            world = dist.group.WORLD
            assert world is not None, "ranks meet first"
            self._store = world.get_group_store()

    def hurry(self) -> None:
        """Something waits for the end of it now."""
        self._deadline = min(self._deadline, time.monotonic() + self._timeout)

    def gather(self, text: str, conclude: Callable[[list[str]], str]) -> str:
        """What ``conclude`` makes of the texts of all ranks, by rank, on the main one; on all.

        On the main one it is that, too, where the others cannot be told any more.

        Raises:
            TimeoutError: another rank has brought nothing in time.
            StoreGoneError: before there was an end.
        """
        if self._size == 1:
            return conclude([text])
        if self._rank:
            with _told():
                self._put(f"{self._rank}", text)
                return self._get("end", 0)
        with _told():
            texts = [text, *(self._get(f"{rank}", rank) for rank in range(1, self._size))]
        end = conclude(texts)
        with contextlib.suppress(StoreGoneError), _told():
            self._put("end", end)
        return end

    def _put(self, key: str, text: str) -> None:
        content = json.dumps(text)  # all of it is ASCII
        starts = range(0, len(content), _CHUNK)
        for number, start in enumerate(starts):
            self._store.set(f"{self._name}/{key}/{number}", content[start : start + _CHUNK])
        self._store.set(f"{self._name}/{key}", f"{len(starts)}")

    def _get(self, key: str, rank: int) -> str:
        name, pause = f"{self._name}/{key}", _FIRST_SECONDS
        while not self._store.check([name]):
            if time.monotonic() > self._deadline:
                raise TimeoutError(f"rank {rank} has written nothing for {self._timeout:.0f} s")
            time.sleep(pause)
            is_hurried = self._deadline < math.inf
            pause = min(2 * pause, _HURRIED_SECONDS if is_hurried else _LONGEST_SECONDS)
        names = [f"{name}/{number}" for number in range(int(self._store.get(name)))]
        content = b"".join(map(self._store.get, names))
        if self._rank == 0:  # nobody else reads it
            for each in (*names, name):
                self._store.delete_key(each)
        return str(json.loads(content))
