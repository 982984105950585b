"""The limits of containers and jobs count beside the memory that the machine has free."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from megatron_ultralong.program import available_memory as module
from megatron_ultralong.program.available_memory import available_memory

NAMES = {
    "v2": ("memory.max", "memory.current", "inactive_file"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def group(folder: Path, version: str, limit: str, usage: int, cache: int) -> None:
    """The files of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    most, used, inactive = NAMES[version]
    (folder / most).write_text(f"{limit}\n")
    (folder / used).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{inactive} {cache}\nactive_file 9\n")


@pytest.mark.parametrize("version", NAMES)
def test_the_tightest_limit_counts(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path if version == "v2" else tmp_path / "memory"
    line = "0::/job/step" if version == "v2" else "4:memory:/job/step"
    (tmp_path / "cgroup").write_text(f"9:cpu:/other\n{line}\n")
    monkeypatch.setattr(module, "_MOUNT", tmp_path)
    monkeypatch.setattr(module, "_GROUPS", tmp_path / "cgroup")
    free = psutil.virtual_memory().available
    root.mkdir(exist_ok=True)
    assert available_memory() > free / 2, "there is no limit"
    group(root / "job/step", version, "max" if version == "v2" else str(2**63 - 4096), 700, 100)
    assert available_memory() > free / 2, "the limit is none"
    group(root / "job/step", version, "10000", 7000, 1500)
    assert available_memory() == 10000 - 7000 + 1500
    group(root / "job", version, "3000", 2900, 0)  # of what it is in
    assert available_memory() == 100
    group(root / "job", version, "3000", 3500, 0)  # lowered since
    assert available_memory() == 0
    # A container sees its own group as the root.
    (tmp_path / "cgroup").write_text(line.replace("job/step", "elsewhere"))
    group(root, version, "5000", 4000, 0)
    assert available_memory() == 1000
