"""The limit of open files (``ulimit -n``), of which ranks need many: sockets to each other."""

import errno
import resource

from megatron_ultralong.program.errors import InputError

LEAST = 70
"""Fewer are too few for one rank alone: torch's libraries and gloo's first groups open as many.
Of two ranks on a CPU one opens 92 to 104, of four 106 to 119; the layout and NCCL add to it."""
ENOUGH = 4096
_MOST = 65536


def raise_limit() -> None:
    """Let this process, and those that it starts, open as many files as they may ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_limit() -> None:
    """Raise InputError where no rank could start: libraries abort for it, or end in a trace."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < LEAST:
        raise InputError(_text(limit))


def told(error: BaseException) -> str:
    """What to say of an error for want of open files; empty: it is another one.

    torch and gloo have the reason in their text alone.
    """
    one: BaseException | None = error
    while one is not None:
        number = one.errno if isinstance(one, OSError) else None
        if number == errno.ENFILE or "Too many open files in system" in str(one):
            return (
                "this machine's processes have opened as many files as it allows (sysctl "
                "fs.file-max): end those that are not needed, or have it raised"
            )
        if number == errno.EMFILE or "Too many open files" in str(one):
            return _text(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        one = one.__cause__ or one.__context__
    return ""


def _text(limit: int) -> str:
    return (
        f"the limit of open files (ulimit -n) is {limit}, which is too low: a rank opens more than "
        f"{LEAST}, and more for each other rank: `ulimit -n {max(ENOUGH, 4 * limit)}` before the "
        "start; where that "
        "is refused, docker run --ulimit nofile=65536, or nofile in /etc/security/limits.conf"
    )
