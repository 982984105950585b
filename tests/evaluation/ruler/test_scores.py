"""RULER: scores as upstream defines them."""

from __future__ import annotations

import pytest

from megatron_ultralong.evaluation.ruler.evaluation import string_match

from .cases import CASES


def test_scores_are_upstreams_on_a_hundred_cases():
    assert len(CASES) == 100
    for metric, prediction, references, expected in CASES:
        score = string_match(metric, prediction, references)
        assert score == pytest.approx(expected, abs=1e-12), (metric, prediction, references)
