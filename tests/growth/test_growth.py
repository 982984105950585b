"""Nothing takes steps by the square of what it is given: counted at n and at 4 n.

An entry of the table is a function that makes ready what is of size ``n`` and gives back what is
counted; ``@counted(n)`` above it enters it. Whatever loops over documents, tensors, layers, ranks,
rows or records has one.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.checkpoint.formats import tensor_file
from tests.growth import checkpoints, documents, records, rows, sources  # noqa: F401 - they enter
from tests.growth.meter import Steps, count
from tests.growth.table import ENTRIES, HEAVY

FACTOR = 5.0
"""Of the steps at 4 n over those at n: 4 where they grow with the work, 16 by its square."""
FLOOR = Steps(lines=300, kilobytes=200, opened=20_000)
"""What every call takes: below it, nothing is compared."""


@pytest.fixture(autouse=True)
def _safetensors_opens_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The safetensors library opens files where Python does not see it."""
    expected = tensor_file.safe_open

    def seen(path: Path, **options: Any) -> Any:
        path.open("rb").close()
        return expected(path, **options)

    monkeypatch.setattr(tensor_file, "safe_open", seen)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.faults] * (name in HEAVY)) for name in ENTRIES],
)
def test_steps_grow_with_the_work(name: str, tmp_path: Path) -> None:
    n, entry = ENTRIES[name]
    found = []
    for size in (n, 4 * n):
        folder = tmp_path / str(size)
        folder.mkdir()
        found.append(count(entry(size, folder)))
    few, many = found
    for part in Steps._fields:
        base = max(getattr(few, part), getattr(FLOOR, part))
        assert getattr(many, part) <= FACTOR * base, f"{part} at {n} and at {4 * n}: {few}, {many}"


def test_the_square_is_seen(tmp_path: Path) -> None:
    """In loops, in copies without a loop, and in files that are opened again."""
    path = tmp_path / "file"

    def loops(n: int) -> object:
        return [[None for _ in range(n)] for _ in range(n)]

    def copies(n: int) -> object:
        found: tuple[int, ...] = ()
        for number in range(10 * n):
            found = (*found, number)
        return found

    def opens(n: int) -> object:
        path.write_bytes(bytes(100 * n))
        return [path.open("rb").close() for _ in range(n)]

    for work, part in ((loops, "lines"), (copies, "kilobytes"), (opens, "opened")):
        few, many = (getattr(count(partial(work, n)), part) for n in (40, 160))
        assert many > 10 * few, work.__name__
