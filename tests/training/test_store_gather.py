"""Threads of ranks gather texts through the job's store."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch.distributed as dist

from megatron_ultralong.training.saving import store_gather
from megatron_ultralong.training.saving.store_gather import StoreGather, StoreGoneError
from tests.ranks import run_on_ranks


def gathered(chunk: int) -> list[str]:
    """Run on every rank: what two of them end with, each in a thread of its own."""
    store_gather._CHUNK = chunk
    found: list[str] = []
    for name in ("one", "two"):
        place = StoreGather(name, 60.0)

        def gather(name: str = name, place: StoreGather = place) -> None:
            own = f"{name} é {dist.get_rank()}\n" * 5
            found.append(place.gather(own, lambda texts: "".join(texts).upper()))

        thread = threading.Thread(target=gather)
        thread.start()
        dist.barrier()  # a collective of main threads meanwhile
        thread.join()
    return found


@pytest.mark.parametrize(("num_ranks", "chunk"), [(1, 4), (2, 4), (3, 2**22)])
def test_all_have_what_the_main_one_makes_of_all(num_ranks: int, chunk: int) -> None:
    expected = [
        "".join(f"{name} É {rank}\n" * 5 for rank in range(num_ranks)) for name in ("ONE", "TWO")
    ]
    assert run_on_ranks(num_ranks, gathered, chunk) == [expected] * num_ranks


def alone() -> str:
    """Run on every rank: the main one does not come."""
    place = StoreGather("alone", 0.1)
    if dist.get_rank() == 0:
        dist.barrier()
        return ""
    place.hurry()
    with pytest.raises(TimeoutError) as error:
        place.gather("", lambda texts: "")
    dist.barrier()
    return str(error.value)


def test_a_rank_that_does_not_come_is_named() -> None:
    assert run_on_ranks(2, alone)[1] == "rank 0 has written nothing for 0 s"


class GoneStore:
    """A store whose server ends before a key with ``last`` in its name is set or looked for."""

    def __init__(self, store: Any, last: str) -> None:
        self.store, self.last = store, last

    def __getattr__(self, name: str) -> Any:
        def call(keys: Any, *values: Any) -> Any:
            if self.last in str(keys):
                raise dist.DistNetworkError("failed to recv, got 0 bytes")
            return getattr(self.store, name)(keys, *values)

        return call


def without_store(last: str) -> str:
    """Run on every rank: what it ends with."""
    place = StoreGather("lost", 60.0)
    place._store = GoneStore(place._store, last)  # type: ignore[assignment]
    try:
        return place.gather(f"{dist.get_rank()}", "".join)
    except StoreGoneError as error:
        return f"{error}"
    finally:
        dist.barrier()


@pytest.mark.parametrize(("last", "of_the_main_one"), [("lost/1", "failed"), ("lost/end", "01")])
def test_the_main_one_knows_the_end_without_the_others(last: str, of_the_main_one: str) -> None:
    """The store goes with torchrun: where there is an end, it is not lost."""
    main, other = run_on_ranks(2, without_store, last)
    assert main.startswith(of_the_main_one)
    assert other.startswith("failed to recv")
