"""Ranks that do not find each other end with a message, and may be started again."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.program.errors import PassingError


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something listens on, which is no store of torch."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def _free() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("rank", "host", "port", "reason"),
    [
        (0, "127.0.0.1", "taken", "address already in use"),
        (0, "127.0.0.1", "free", "1/2 clients joined"),
        (1, "127.0.0.1", "free", "timed out"),
        (1, "no-host.invalid", "free", "timed out"),
        (0, "127.0.0.1", "a", "invalid literal"),
        (0, "127.0.0.1", "99999", "99999"),
    ],
)
def test_what_keeps_them_apart_is_named(
    monkeypatch: pytest.MonkeyPatch, taken: int, rank: int, host: str, port: str, reason: str
) -> None:
    port = {"taken": str(taken), "free": str(_free())}.get(port, port)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", host)
    monkeypatch.setenv("MASTER_PORT", port)
    parallel = ParallelConfig(distributed_timeout_minutes=0.02)
    with pytest.raises(PassingError) as end, parallel_groups(parallel, seed=0):
        pass
    said = str(end.value)
    assert f"rank {rank} of 2 ranks does not meet the others at {host}:{port}" in said
    assert reason in said
    assert "\n" not in said
    assert not dist.is_initialized()
