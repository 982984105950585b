"""Records of evaluations."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from megatron_ultralong.evaluation.journal import open_journal
from megatron_ultralong.generation.continuation import make_batches
from tests.growth.table import Work, counted


@counted(50)
def samples_in_a_journal(n: int, folder: Path) -> Work:
    def note() -> None:
        opened = open_journal(folder / "out", "kind", {}, is_main=True)
        with contextlib.suppress(KeyboardInterrupt), opened as journal:
            for number in range(n):
                journal.add(str(number), {"score": number})
            raise KeyboardInterrupt
        with open_journal(folder / "out", "kind", {}, is_main=True) as journal:
            assert [journal.get(str(number)) for number in range(n)][-1] == {"score": n - 1}

    return note


@counted(1000)
def batches_of_prompts(n: int, folder: Path) -> Work:
    lengths = np.random.default_rng(0).integers(1, 1000, size=n).tolist()
    return lambda: make_batches(lengths, 8, 4000)
