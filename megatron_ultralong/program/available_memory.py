"""Host memory that this process may still take."""

from pathlib import Path

import psutil

_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes: what the machine has free, or what the limit of a container or job leaves of it."""
    left = [psutil.virtual_memory().available, *_left_in_groups(_GROUPS, _MOUNT)]
    return max(0, min(left))  # a limit that was lowered may be exceeded


def _left_in_groups(groups: Path, mount: Path) -> list[int]:
    """Bytes that each limit leaves: of this process's control group and those that it is in."""
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:  # not Linux
        return []
    for _, controllers, name in (line for line in lines if len(line) == 3):
        if controllers in ("", "memory"):
            root = mount / controllers
            own = root / name.lstrip("/")
            # A container sees its own group as the root.
            folders = [p for p in (own, *own.parents) if p.is_relative_to(root)]
            return [left for folder in folders for left in _left(folder)]
    return []


def _left(folder: Path) -> list[int]:
    """Of one group, in version 2 or 1: its limit less what it holds and could not let go of."""
    for limit, usage, cache in (
        ("memory.max", "memory.current", "inactive_file "),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
    ):
        try:
            most, used = (folder / limit).read_text(), int((folder / usage).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            return [int(most) - used + sum(int(s.split()[1]) for s in lines if s.startswith(cache))]
        except (OSError, ValueError):  # none, or `max`
            continue
    return []
