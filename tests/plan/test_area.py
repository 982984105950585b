"""What documents that do not attend to each other take of a plan's time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.plan.area import drawn_rows, expected_area
from megatron_ultralong.sequence.documents import causal_area
from tests.plan.test_plan import planned


def test_documents_make_the_step_shorter(tmp_path: Path) -> None:
    words = ("plan", "llama3.1-8b-1m", "--gpus", "64", "--no-search")
    whole = planned(tmp_path, *words)["chosen"]["seconds"]
    masked = planned(
        tmp_path, *words, "--document-mask", "block", "--mean-document-length", "16384"
    )["chosen"]["seconds"]
    share = expected_area(2**20, 16384) / (2**19 * (2**20 + 1))
    rows, ring = drawn_rows(2**20, 16384), ParallelConfig(context_parallel_size=4)
    slowest = rows.slowest_over_mean(ring)
    gathering = dataclasses.replace(ring, cp_comm_type="all_gather")
    assert 1 < rows.slowest_over_mean(gathering) < slowest < 2
    assert masked["attention"] == pytest.approx(slowest * share * whole["attention"])
    balanced = planned(
        tmp_path, *words, "--document-mask", "block", "--mean-document-length", "16384",
        "--cp-assignment", "balanced",
    )["chosen"]["seconds"]  # fmt: skip
    even = rows.slowest_over_mean(dataclasses.replace(ring, cp_assignment="balanced"))
    assert 1 <= even < 1.05
    assert balanced["attention"] == pytest.approx(even * share * whole["attention"])
    for part in ("projections, MLP, output layer", "elementwise"):
        assert masked[part] == whole[part]


@pytest.mark.parametrize(("length", "mean"), [(1000, 10.0), (1000, 300.0), (50, 5000.0), (7, 1.0)])
def test_the_expected_area_is_the_mean_of_drawn_rows(length: int, mean: float) -> None:
    generator = np.random.default_rng(0)
    areas = []
    for _ in range(2000):
        ends = np.flatnonzero(generator.random(length - 1) < 1 / mean) + 1
        areas.append(causal_area([0, *ends.tolist(), length]))
    # The mean of 2,000 rows has a standard error of its own.
    error = 4 * np.std(areas) / np.sqrt(len(areas))
    assert abs(np.mean(areas) - expected_area(length, mean)) <= error + 1e-6 * length
