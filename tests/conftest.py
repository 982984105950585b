"""Settings of all tests."""

from __future__ import annotations

import os

import torch
from hypothesis import settings

# No deadline: the machines are shared. In CI the examples are the same every time.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# The same sums on every machine, and no fight over cores with the ranks that tests start.
torch.set_num_threads(1)
