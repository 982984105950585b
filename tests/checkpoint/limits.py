"""A refusal takes little: memory, time and words."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoint.verbs import refusal
from tests.patience import patience

MEMORY = 2 * 2**30
"""Bytes that a refusal may take over what the process has already."""
SECONDS = 10.0


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Address space for 2 GiB more than there is now: whoever asks for more gets none."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def check_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], path: Path, *parts: str
) -> None:
    start = time.process_time()
    error = refusal(capsys, words)
    assert time.process_time() - start < patience(SECONDS)
    assert str(path) in error
    assert len(error) < 1000
    for part in parts:
        assert part in error
