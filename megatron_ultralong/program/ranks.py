"""What torchrun says of this process, before ranks have met. Nothing here needs torch."""

import contextlib
import os
from collections.abc import Iterator

from megatron_ultralong.program.environment import variables
from megatron_ultralong.program.quantity import counted

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Names the file where a rank leaves its message for what has started it."""
LAUNCHED = "ULTRALONG_LAUNCHER"
"""Process that started this rank by ``--ranks``, and tells the job's one message."""


def is_launched() -> bool:
    """Whether this rank was started by ``--ranks``, whose process speaks for it at its end."""
    return LAUNCHED in os.environ


@contextlib.contextmanager
def as_job_of(num_ranks: int | None) -> Iterator[None]:
    """Check inside for so many ranks of this machine; None: for those that there are."""
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE") if num_ranks else ()
    with variables(dict.fromkeys(names, str(num_ranks))):
        yield


def world_size() -> int:
    """Ranks of this job: as torchrun says, or one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_told_world_size() -> bool:
    """Whether torchrun or the user says how many ranks the job has."""
    return "WORLD_SIZE" in os.environ


def under_torchrun() -> bool:
    """Whether this process is one rank of a job."""
    return "RANK" in os.environ


def assumptions(num_ranks: int) -> list[str]:
    """What a check for ``num_ranks`` ranks assumes where nothing says how many there are."""
    found = []
    if not is_told_world_size():
        found.append(
            f"{counted(num_ranks, 'rank')}, the fewest that the layout allows (WORLD_SIZE is "
            "not set; "
            "WORLD_SIZE=N checks a job of N ranks)"
        )
    if "LOCAL_WORLD_SIZE" not in os.environ:
        found.append(
            "1 rank on this host, for the limit of host memory (LOCAL_WORLD_SIZE is not set)"
        )
    return found


def is_main_rank() -> bool:
    """Whether this rank speaks for the job: prints, and writes the single files."""
    return int(os.environ.get("RANK", "0")) == 0
