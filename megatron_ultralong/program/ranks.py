"""The environment: what torchrun says there, before ranks have met. Nothing here needs torch."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from megatron_ultralong.program.errors import InputError, counted

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Names the file where a rank leaves its message for what has started it."""
LAUNCHED = "ULTRALONG_LAUNCHER"
"""Process that started this rank by ``--ranks``, and tells the job's one message."""
FOLDER_PREFIX = "ultralong-ranks-"
LAUNCHER_FILE = "launcher"
"""Of the folder that ``--ranks`` makes for a job, and its file with the number of its process."""
_MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_NUMBERS = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    "TORCHELASTIC_RESTART_COUNT",
)
_OF_A_RANK = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", ERROR_FILE),
)
"""What ``--ranks`` sets beside :data:`LAUNCHED`."""
_TASKS = (
    ("SLURM_STEP_NUM_TASKS", "srun"),
    ("OMPI_COMM_WORLD_SIZE", "mpirun"),
    ("PMI_SIZE", "mpiexec"),
    ("MV2_COMM_WORLD_SIZE", "mpirun_rsh"),
    ("JSM_NAMESPACE_SIZE", "jsrun"),
)
"""What sets how many tasks it has started, but not which rank each is for torch."""
_WHOLE = re.compile("[0-9]{1,9}")


def is_launched() -> bool:
    """Whether this rank was started by ``--ranks``, whose process speaks for it at its end.

    The variables alone do not tell: a shell may have kept them, or a rank given them to a program
    that it starts. So the first process that asks claims its place in the folder of the job.
    """
    launcher, error_file = os.environ.get(LAUNCHED, ""), Path(os.environ.get(ERROR_FILE, ""))
    claim = error_file.with_suffix(".rank") if error_file.name else Path()
    try:
        if not launcher or (error_file.parent / LAUNCHER_FILE).read_text("ascii") != launcher:
            return False
        with contextlib.suppress(PermissionError):  # it is there
            os.kill(int(launcher), 0)
        with contextlib.suppress(FileExistsError), claim.open("x", encoding="ascii") as file:
            file.write(str(os.getpid()))
        return claim.read_text("ascii") == str(os.getpid())
    except (OSError, ValueError):
        return False


def leave_out_others() -> str:
    """Take variables out of the environment that ``--ranks`` has set for another process.

    Returns:
        A line that says so; empty: there are none.
    """
    launcher = os.environ.get(LAUNCHED)
    if launcher is None or is_launched():
        return ""
    # torchrun, started here since, has set all but one again
    is_whole = Path(os.environ.get(ERROR_FILE, "")).parent.name.startswith(FOLDER_PREFIX)
    names = (LAUNCHED, *(_OF_A_RANK if is_whole else ()))
    dropped = [name for name in names if os.environ.pop(name, None) is not None]
    return (
        f"warning: {', '.join(dropped)} in the environment are of a rank that `--ranks` has "
        f"started (process {launcher}), which this process is not: they are not used"
    )


@contextlib.contextmanager
def as_job_of(num_ranks: int | None) -> Iterator[None]:
    """Check inside for so many ranks of this machine; None: for those that there are."""
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE") if num_ranks else ()
    with variables(dict.fromkeys(names, str(num_ranks))):
        yield


def number_of(name: str, default: int = 0) -> int:
    """A variable that holds a number, see :func:`check_variables`; ``default``: it holds none."""
    text = os.environ.get(name, "")
    return int(text) if _WHOLE.fullmatch(text) else default


def check_variables() -> None:
    """Check what a shell, a container or a scheduler may have left where torchrun leaves numbers.

    Raises:
        InputError: one is none, or they do not fit.
    """
    for name in _NUMBERS:
        text = os.environ.get(name)
        least = int(name.endswith("WORLD_SIZE"))
        if text is not None and number_of(name, -1) < least:
            raise InputError(
                f"{name} is {text!r} in the environment, and must be a whole number of at least "
                f"{least}: torchrun sets it; without torchrun, `unset {name}`"
            )
    if under_torchrun() and is_told_world_size() and number_of("RANK") >= world_size():
        raise InputError(
            f"RANK is {os.environ['RANK']} in the environment and WORLD_SIZE {world_size()}: ranks "
            "count from 0, so they are of two jobs; `unset RANK WORLD_SIZE`, or start with torchrun"
        )


def tasks_without_ranks() -> tuple[int, str, str]:
    """How many tasks a scheduler or MPI has started, by which variable and program.

    0 where it has started one, or something has told them which ranks they are.
    """
    if under_torchrun():
        return 0, "", ""
    found = ((number_of(name), name, program) for name, program in _TASKS)
    return next((one for one in found if one[0] > 1), (0, "", ""))


def check_start() -> None:
    """Check, before this rank is started, that it can find the others, or has found them.

    Raises:
        InputError: the variables of a job are not all there, or several tasks would each be one.
    """
    distributed = sys.modules.get("torch.distributed")  # where a caller has made them meet
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return
    lacking = [name for name in _MEETING if name not in os.environ]
    there = [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]
    if lacking and (under_torchrun() or world_size() > 1):
        shown = " and ".join(f"{name} ({os.environ[name]})" for name in there)
        raise InputError(
            f"{shown} in the environment without {', '.join(lacking)}: they say which rank of a "
            f"job this is, and all are needed; start the ranks with torchrun or --ranks, or `unset "
            f"{' '.join(there)}` for a job of one"
        )
    number, name, program = tasks_without_ranks()
    if number:
        raise InputError(
            f"this is one of {counted(number, 'task')} of {program} ({name}), and nothing says "
            "which rank of a job it is: each would do the whole work alone; let it start torchrun, "
            f"one on each machine (docs/clusters.md), or set {', '.join(_MEETING)} and LOCAL_RANK "
            f"in every task; if each has work of its own, `unset {name}` in it"
        )


def world_size() -> int:
    """Ranks of this job: as torchrun says, or one."""
    return number_of("WORLD_SIZE", 1)


def local_world_size(default: int = 1) -> int:
    """Ranks of this job on this machine: as torchrun says, or ``default``."""
    return max(1, number_of("LOCAL_WORLD_SIZE", default))


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
            f"{counted(num_ranks, 'rank')}, the fewest that the flags allow (WORLD_SIZE is "
            "not set; WORLD_SIZE=N checks a job of N ranks)"
        )
    if "LOCAL_WORLD_SIZE" not in os.environ:
        found.append(
            "1 rank on this host, for the limit of host memory (LOCAL_WORLD_SIZE is not set)"
        )
    return found


def is_main_rank() -> bool:
    """Whether this rank speaks for the job: prints, and writes the single files."""
    return number_of("RANK") == 0


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Inside, the environment has these values, and what it had before behind it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def path_of_modules() -> dict[str, str]:
    """What a Python that is started here needs to import its modules from where this one does.

    ``python -m`` and ``python -c`` look in the current folder first, where a ``random.py`` may lie;
    the command ``ultralong`` does not. Pythons from 3.11 on read the variable.
    """
    is_searched = bool({"", os.getcwd()} & set(sys.path))
    return {} if is_searched else {"PYTHONSAFEPATH": "1"}


def check_current_folder() -> None:
    """Raise InputError where it was removed: libraries end without a word that helps."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise InputError(
            "the current folder is not there any more: `cd` to one that is, or to the new one of "
            "that name"
        ) from error
