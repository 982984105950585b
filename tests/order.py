"""In which order tests run: the files that take longest first."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent

SLOWEST = (
    "test_smollm2_steps.py",
    "training/layouts/test_two_ranks.py",
    "training/layouts/test_four_ranks.py",
    "checkpoint/test_random_folders.py",
    "training/test_torchrun.py",
    "test_examples.py",
    "training/test_two_jobs.py",
    "training/test_kills.py",
    "slurm/test_slurm.py",
    "data/test_corpora.py",
    "data/test_bombs.py",
    "evaluation/test_harness.py",
    "checkpoint/test_releases.py",
    "generation/test_continuation.py",
    "plan/test_live_bytes.py",
    "training/test_faults.py",
    "docs/test_blocks.py",
    "evaluation/test_passkey.py",
    "checkpoint/test_shape_families.py",
    "checkpoint/test_logits.py",
    "test_docker.py",
    "training/test_resharding.py",
    "training/test_sft.py",
)
"""The files that take longest, longest first."""


def sort(items: list[pytest.Item]) -> None:
    """Slow files first: the last file to begin is a short one, and no core waits for it."""
    place = {TESTS / name: number for number, name in enumerate(SLOWEST)}
    assert all(path.exists() for path in place), "a slow file has another name"
    items.sort(key=lambda item: place.get(item.path, len(place)))
