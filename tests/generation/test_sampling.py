"""Draws have the distribution that transformers' logits processors make."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from megatron_ultralong.config.generate import SamplingConfig
from megatron_ultralong.generation.continuation import choose, distribution
from megatron_ultralong.program.errors import InputError

configs = st.builds(
    SamplingConfig,
    temperature=st.floats(0.2, 3.0),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.05, 1.0),
)


def random_logits(seed: int, rows: int = 3, vocabulary: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, vocabulary, generator=generator)


def expected_probabilities(logits: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    scores = TemperatureLogitsWarper(config.temperature)(None, logits.double())
    if config.top_k:
        scores = TopKLogitsWarper(config.top_k)(None, scores)
    if config.top_p < 1:
        scores = TopPLogitsWarper(config.top_p)(None, scores)
    return scores.softmax(-1)


@given(configs, st.integers(0, 1000), st.booleans())
def test_the_distribution_is_that_of_transformers(config, seed, has_ties):
    logits = random_logits(seed)
    if has_ties:
        logits = logits.round()
    probabilities, ids = distribution(logits, config)
    found = torch.zeros_like(probabilities).scatter(-1, ids, probabilities)
    expected = expected_probabilities(logits, config)
    if has_ties and config.top_p < 1:
        # Which of equal tokens top-p cuts off is a matter of order: compare them as a set.
        found, expected = found.sort(-1).values, expected.sort(-1).values
    # A cumulative probability that equals top_p within rounding falls on either side.
    shares = expected.sort(-1, descending=True).values.cumsum(-1)
    if config.top_p < 1 and (probabilities.cumsum(-1) - config.top_p).abs().min() < 1e-12:
        return
    assert shares[:, -1].allclose(torch.ones_like(shares[:, -1]))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_draws_follow_the_distribution():
    logits = random_logits(0, rows=1, vocabulary=12).expand(20_000, 12)
    config = SamplingConfig(temperature=2.0, top_k=8, top_p=0.95)
    drawn = choose(logits, config, range(20_000), 0)
    counts = np.bincount(drawn.numpy(), minlength=12)
    expected = 20_000 * expected_probabilities(logits[:1], config)[0].numpy()
    assert not counts[expected == 0].any()
    seen = expected > 0
    chi_squared = ((counts - expected)[seen] ** 2 / expected[seen]).sum()
    # The 0.9999 quantile for the at most 7 degrees of freedom; the draws are the same every time.
    assert chi_squared < 29.9
    assert 4 < seen.sum() < 8


@given(st.integers(0, 100), st.integers(0, 100))
def test_a_draw_depends_on_seed_prompt_and_token_alone(seed, token):
    logits = random_logits(seed, rows=4)
    config = SamplingConfig(temperature=1.5, seed=seed)
    together = choose(logits, config, [7, 2, 9, 4], token)
    for row, prompt in enumerate([7, 2, 9, 4]):
        assert choose(logits[row : row + 1], config, [prompt], token) == together[row]


def test_seeds_prompts_and_tokens_draw_differently():
    logits = torch.zeros(1, 1000)
    config = SamplingConfig(temperature=1.0)
    other = SamplingConfig(temperature=1.0, seed=1)
    draws = {
        int(choose(logits, config, [0], 0)),
        int(choose(logits, config, [1], 0)),
        int(choose(logits, config, [0], 1)),
        int(choose(logits, other, [0], 0)),
    }
    assert len(draws) == 4


def test_temperature_zero_takes_the_likeliest():
    logits = random_logits(3)
    assert choose(logits, SamplingConfig(), [0, 1, 2], 5).equal(logits.argmax(-1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SamplingConfig(temperature=-1.0), "temperature must be 0, or at least 1e-06, not -1.0"),
        (
            SamplingConfig(temperature=float("nan")),
            "temperature must be 0, or at least 1e-06, not nan",
        ),
        (SamplingConfig(temperature=1.0, top_k=-1), "top_k must be at least 0, not -1"),
        (SamplingConfig(temperature=1.0, top_p=0.0), "top_p must be above 0 and at most 1"),
        (SamplingConfig(top_k=5), "temperature 0 always takes the likeliest"),
    ],
)
def test_bad_settings_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        config.check()
