"""Settings of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.patience import patience, slowness
from tests.warm.programs import warm_programs

# No deadline: the machines are shared. In CI the examples are the same every time.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# The same sums on every machine, and no fight over cores with the ranks that tests start.
torch.set_num_threads(1)


# The files that take longest, longest first.
SLOWEST = (
    "training/test_layouts.py",
    "training/test_torchrun.py",
    "training/test_two_jobs.py",
    "training/test_kills.py",
    "slurm/test_slurm.py",
    "generation/test_continuation.py",
    "training/test_faults.py",
    "test_examples.py",
    "docs/test_blocks.py",
    "evaluation/test_passkey.py",
    "checkpoint/test_shape_families.py",
    "checkpoint/test_logits.py",
    "plan/test_live_bytes.py",
    "test_docker.py",
    "training/test_resharding.py",
    "training/test_sft.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Measure the machine once, before the processes that run the tests are started."""
    slowness()


def pytest_report_header() -> str:
    """Say what the waits are stretched by."""
    return f"waits: {slowness():.2f} times those of a quiet machine"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Limits against hanging that suit the machine, and slow files first.

    The last file to begin is then a short one, and no core waits for it.
    """
    limit = patience(float(config.getoption("timeout") or config.getini("timeout")))
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(limit))
    paths = [Path(__file__).parent / name for name in SLOWEST]
    assert all(path.exists() for path in paths), "a slow file has another name"
    place = {path: number for number, path in enumerate(paths)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def warm_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of shell scripts under test; see :mod:`tests.warm`."""
    with warm_programs(tmp_path_factory.mktemp("programs")) as environment:
        yield environment
