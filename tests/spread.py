"""Which tests go together to one of several processes (pytest-xdist)."""

from __future__ import annotations

from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

SPREAD = (
    "checkpoint/test_random_folders.py",
    "checkpoint/test_releases.py",
    "data/test_bombs.py",
    "data/test_corpora.py",
    "plan/test_sizes.py",
    "slurm/test_slurm.py",
    "training/test_faults.py",
    "training/test_kills.py",
    "training/test_torchrun.py",
)
"""Files of long tests that have nothing in common: each test goes to whichever process is free."""


class Spread(LoadScopeScheduling):
    """Files to processes, in their order, but tests of ``SPREAD`` one by one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return nodeid if file.removeprefix(f"{Path(__file__).parent.name}/") in SPREAD else file
