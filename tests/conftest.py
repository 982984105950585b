"""Settings of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.warm.programs import warm_programs

# No deadline: the machines are shared. In CI the examples are the same every time.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# The same sums on every machine, and no fight over cores with the ranks that tests start.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def warm_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of shell scripts under test; see :mod:`tests.warm`."""
    with warm_programs(tmp_path_factory.mktemp("programs")) as environment:
        yield environment
