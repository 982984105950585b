"""What torchrun says of this process, before ranks have met. Nothing here needs torch."""

from __future__ import annotations

import os


def world_size() -> int:
    """Ranks of this job: as torchrun says, or one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_rank() -> bool:
    """Whether this rank speaks for the job: prints, and writes the single files."""
    return int(os.environ.get("RANK", "0")) == 0
