"""Intervals against published figures and against their own coverage; effective lengths."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from megatron_ultralong.evaluation.results import interval
from megatron_ultralong.evaluation.results.interval import Estimate, effective_length, wilson
from megatron_ultralong.evaluation.results.result import ScoreCell, mean_cell
from tests.evaluation.results import loss_of, passkey_result, task_result

LENGTHS = ("4K", "8K", "16K", "32K", "64K", "128K")
PUBLISHED = {
    # RULER's table of results (its README): scores by length, and the effective length.
    "Gemini-1.5-pro": ((96.7, 95.8, 96.0, 95.9, 95.9, 94.4), "128K or more"),
    "GPT-4-1106-preview": ((96.6, 96.3, 95.2, 93.2, 87.0, 81.2), "64K"),
    "Llama3.1 (70B)": ((96.5, 95.8, 95.4, 94.8, 88.4, 66.6), "64K"),
    "Qwen2 (72B)": ((96.9, 96.1, 94.9, 94.1, 79.8, 53.7), "32K"),
    "GLM4 (9B)": ((94.7, 92.8, 92.1, 89.9, 86.7, 83.1), "64K"),
    "Llama3.1 (8B)": ((95.5, 93.8, 91.6, 87.4, 84.7, 77.0), "32K"),
    "GradientAI/Llama3 (70B)": ((95.1, 94.4, 90.8, 85.4, 80.9, 72.1), "16K"),
    "Mixtral-8x22B": ((95.6, 94.9, 93.4, 90.9, 84.7, 31.7), "32K"),
    "Phi3-medium (14B)": ((93.3, 93.2, 91.1, 86.8, 78.6, 46.1), "32K"),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_effective_lengths_are_those_that_ruler_publishes(model: str) -> None:
    scores, expected = PUBLISHED[model]
    found = [Estimate(score, score, score) for score in scores]
    assert effective_length(list(zip(LENGTHS, found, strict=True)), 85.6) == expected


@pytest.mark.parametrize(
    ("scores", "noise", "expected"),
    [
        ((95, 90, 80, 70), 1, "8K"),
        ((95, 90, 80, 95), 1, "8K"),  # what comes after a fall does not count
        ((95, 90, 80, 70), 6, "8K (at least 4K, at most 16K)"),
        ((95, 93, 84, 70), 2, "8K (at most 16K)"),
        ((95, 86, 80, 70), 2, "8K (at least 4K)"),
        ((95, 93, 92, 91), 1, "32K or more"),
        ((95, 93, 92, 87), 2, "32K or more (at least 16K)"),
        ((95, 93, 92, 84), 2, "16K (perhaps more)"),
        ((87, 86, 84, 70), 2, "8K (perhaps below 4K, at most 16K)"),
        ((84, 70, 60, 50), 2, "below 4K (at most 4K)"),
        ((80, 70, 60, 50), 2, "below 4K"),
        ((85.6, 70, 60, 50), 0, "below 4K"),  # RULER: exceeds the threshold
        ((50, 50, 50, 50), 50, "below 4K (perhaps more)"),
    ],
)
def test_an_effective_length_says_what_the_samples_allow(
    scores: tuple[float, ...], noise: float, expected: str
) -> None:
    found = [Estimate(score, score - noise, score + noise) for score in scores]
    assert effective_length(list(zip(LENGTHS, found, strict=False)), 85.6) == expected


@pytest.mark.parametrize(
    ("hits", "num_samples", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(hits: int, num_samples: int, low: float, high: float) -> None:
    found = wilson(100 * hits / num_samples, num_samples)
    # 5e-5: the table has four places.
    assert (found.low / 100, found.high / 100) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    # Newcombe (1998), 17:873, table II, method 10.
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090),
     ((6, 7), (2, 7), 0.0582, 0.8062), ((5, 56), (0, 29), -0.0381, 0.1926),
     ((0, 10), (0, 20), -0.1611, 0.2775)],
)  # fmt: skip
def test_differences_as_published(
    one: tuple[int, int], other: tuple[int, int], low: float, high: float
) -> None:
    left, right = (wilson(100 * hits / number, number) for hits, number in (one, other))
    found = left - right
    # 5e-5: the table has four places.
    assert (found.low / 100, found.high / 100) == pytest.approx((low, high), abs=5e-5)
    assert left.differs_from(right) is right.differs_from(left) is (low > 0)


def test_the_method_fits_the_scores() -> None:
    hits = mean_cell("vt", "4096", [1.0] * 45 + [0.0] * 15)
    assert interval.cell_estimate(hits) == wilson(75, 60)
    unknown = dataclasses.replace(hits, distribution=(), error=None)
    assert interval.cell_estimate(unknown) == wilson(75, 60)
    assert interval.cell_estimate(unknown, are_shares=False) == Estimate(75, -math.inf, math.inf)
    stated = dataclasses.replace(unknown, error=2.0)  # of a corpus, or a mean of groups
    margin = interval.Z * 2
    assert interval.cell_estimate(stated) == Estimate(75, 75 - margin, 75 + margin)
    nothing = dataclasses.replace(stated, score=0.0, error=0.0)
    assert interval.cell_estimate(nothing, are_shares=False) == wilson(0, 60)
    partial = mean_cell("vt", "4096", [0.5, 1.0] * 30)
    found = interval.cell_estimate(partial)
    assert found is not None
    assert found == interval.cell_estimate(partial)
    error = 25 / math.sqrt(60)
    # A mean of 60 has steps of 50 / 60.
    assert found.high - 75 == pytest.approx(1.96 * error, abs=50 / 60)
    assert found.high < wilson(75, 60).high  # partial scores vary less
    few = mean_cell("vt", "4096", [0.5, 1.0] * 5)
    assert interval.cell_estimate(few) == wilson(75, 10)
    assert interval.cell_estimate(mean_cell("vt", "4096", [0.75] * 60)) == wilson(75, 60)
    loss = loss_of("a", 512, (3.0,) * 4).cells[0]
    assert interval.cell_estimate(loss) == Estimate(3.0, 3 - interval.Z / 100, 3 + interval.Z / 100)
    unknown = interval.cell_estimate(dataclasses.replace(loss, error=None))
    assert unknown == Estimate(3.0, -math.inf, math.inf)
    assert interval.cell_estimate(ScoreCell("0-1", "loss", 0, None)) is None


def test_the_size_of_a_draw_does_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = mean_cell("vt", "4096", [k / 50 for k in range(50)])
    whole = interval.cell_estimate(cell)
    monkeypatch.setattr(interval, "_MOST_DRAWN", 350)
    assert interval.cell_estimate(cell) == whole


def test_means_of_the_harness_have_no_interval_without_errors() -> None:
    scores = {("wmt", "bleu"): 30.0, ("iwslt", "bleu"): 20.0}
    result = task_result("harness", "a", 512, scores)
    assert str(interval.column_estimate(result, "bleu")) == "25.0"
    one, other = (interval.cell_estimate(cell, are_shares=False) for cell in result.cells)
    assert one is not None
    assert other is not None
    assert not one.differs_from(other)


def test_means_are_those_of_the_tables() -> None:
    passkey = passkey_result("a", 512, {512: 9, 1024: 5})
    assert interval.column_estimate(passkey, "512") == wilson(90, 20)
    ruler = task_result("ruler", "a", 512, {("vt", "512"): 90.0, ("cwe", "512"): 50.0})
    found = interval.column_estimate(ruler, "512")
    assert found is not None
    arms = [wilson(score, 100).value - wilson(score, 100).low for score in (90.0, 50.0)]
    assert (found.value, found.low) == (70.0, pytest.approx(70 - math.hypot(*arms) / 2))


def test_intervals_of_means_hold_what_they_promise() -> None:
    """Tasks of different difficulty and both sorts of scores, drawn again and again."""
    rng = np.random.default_rng(0)
    shares = np.asarray([0.97, 0.9, 0.6, 0.2])
    truth, num_samples, num_trials, held = 100 * shares.mean(), 40, 300, 0
    for _ in range(num_trials):
        drawn = (rng.random((4, 4, num_samples)) < shares[:, None, None]).astype(float)
        drawn[:2] = drawn[:2, :1]  # two tasks are all or nothing, two of four parts
        cells = [mean_cell(f"{k}", "4096", row.tolist()) for k, row in enumerate(drawn.mean(1))]
        found = interval.mean_estimate(cells)
        assert found is not None
        held += found.low <= truth <= found.high
    # Of 95 %: two standard deviations of 300 draws are 2.5 points, and the bootstrap lacks one.
    assert held / num_trials > 0.915
