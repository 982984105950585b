"""A run that has no iteration left: what to say of it, before any rank is started.

It needs no torch.
"""

import contextlib
import os
import sys
from pathlib import Path

from megatron_ultralong.checkpoint.disk import checksums, stored_iteration
from megatron_ultralong.checkpoint.disk import folder as folders
from megatron_ultralong.program import aside, ranks
from megatron_ultralong.program.progress import progress
from megatron_ultralong.training import earlier_start
from megatron_ultralong.training.config_file import CONFIG_FILE, load_config
from megatron_ultralong.training.early_checks import RunInputs
from megatron_ultralong.training.saving import checkpoints

STATUS_FILE = "exit_status"
"""In the folder of a run: the status of its last orderly end."""
_LENGTH = ("train_iters was", "train_tokens was", "num_epochs was")
NOTHING_DONE = "nothing was left to do; no checkpoint was written"


def nothing_left(done: int, total: int, each_iteration: tuple[str, float]) -> str:
    """What to say of a start of ``total`` iterations of which ``done`` are; empty: some are left.

    ``each_iteration`` has the flag that said how long the run is, and what an iteration is of it.
    """
    if done < total:
        return ""
    state = "complete" if done == total else f"past train_iters ({total})"
    flag, each = each_iteration
    most = f"{done * each:,.6g}" if flag == "--num-epochs" else f"{round(done * each):,}"
    return f"the run is at iteration {done}, {state}: {flag} above {most} trains on"


def ends_here(run: RunInputs) -> bool:
    """Say that a run has no iteration left; whether that is all there is to do.

    Its newest checkpoint is read whole first, by this process. Where it is damaged, and under
    torchrun, whose ranks share the reading, the ranks start and see to it.

    Raises:
        OSError: a file cannot be opened.
    """
    root = Path(run.config.save or "")
    if not run.config.save or not root.is_dir() or not ranks.is_main_rank():
        return False
    done = next(iter(checkpoints.candidates(root, is_quiet=True)), 0)
    text = nothing_left(done, run.config.train_iters, run.each_iteration)
    if not text or not done:
        return False
    folder = folders.iteration_folder(root, done)
    if not stored_iteration.confirms(folder, done):  # the ranks say what it is
        return False
    try:
        listed = checksums.read_checksums(folder)
    except checksums.DamagedError:
        return False
    if ranks.under_torchrun():  # the ranks say what has changed, too
        _write(f"{text}; the ranks only check that its checkpoint is whole")
        return False
    for line in (text, *changes_without_effect(run, root)):
        _write(line)
    num_threads, size = len(os.sched_getaffinity(0)), sum(one.size for one in listed.values())
    with progress("verify", size, "B") as bar:
        is_damaged = checkpoints.damage(folder, num_threads=num_threads, advance=bar.advance)
    if is_damaged:
        return False
    _write(NOTHING_DONE)
    status = root / STATUS_FILE
    with contextlib.suppress(OSError):  # the folder may be closed to this user
        if status.is_file() and status.read_bytes() != b"0\n":
            aside.write_aside(status, "0\n")
    return True


def changes_without_effect(run: RunInputs, root: Path) -> list[str]:
    """What a command sets otherwise than the last start of the finished run in ``root``, in lines.

    The length is no such thing: it is told with the iteration.
    """
    before = load_config(root / CONFIG_FILE, type(run.config))
    # files of earlier releases have the iterations that follow from passes, too
    now = run.config if before.train_iters else run.said
    return [
        f"changed since the start before, without effect: {change}"
        for change in earlier_start.changes(before, now)
        if not change.startswith(_LENGTH)
    ]


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
