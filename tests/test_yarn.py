from __future__ import annotations

import dataclasses
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_ultralong.model import yarn
from megatron_ultralong.model.yarn import LinearConfig, NtkConfig, YarnConfig
from megatron_ultralong.program.errors import InputError

HEAD_DIM = 128
BASE = 500_000.0
TARGETS = {1_048_576: 128.0, 2_097_152: 256.0, 4_194_304: 512.0}


def hugging_face_rope(
    scaling: yarn.RopeScaling, max_positions: int, head_dim: int = HEAD_DIM, base: float = BASE
) -> tuple[np.ndarray, float]:
    """Frequencies and cos/sin factor that transformers makes of the exported block."""
    block = yarn.hf_rope_scaling(scaling) or {"rope_type": "default"}
    theta = yarn.effective_rotary_base(scaling, head_dim, base)
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        rope_parameters={**block, "rope_theta": theta},
    )
    rotary = LlamaRotaryEmbedding(config)
    return rotary.inv_freq.double().numpy(), rotary.attention_scaling


@pytest.mark.parametrize(("target", "factor"), TARGETS.items())
@pytest.mark.parametrize("ramp", ["rotations", "dimensions"])
def test_frequencies_are_those_of_transformers(target: int, factor: float, ramp: yarn.Ramp) -> None:
    scaling = YarnConfig(factor, ramp=ramp)
    expected, attention_scaling = hugging_face_rope(scaling, target)
    # transformers works in float32: each operation rounds by 6e-8, and where a dimension makes
    # little more than beta_slow rotations, the subtraction in the ramp makes that ten times more.
    np.testing.assert_allclose(yarn.inv_freq(scaling, HEAD_DIM, BASE), expected, rtol=1e-6)
    assert attention_scaling == 1.0


@pytest.mark.parametrize("scaling", [None, LinearConfig(4.0), NtkConfig(16.0)])
def test_rivals_are_those_of_transformers(scaling: yarn.RopeScaling) -> None:
    expected, _ = hugging_face_rope(scaling, 32_768)
    np.testing.assert_allclose(yarn.inv_freq(scaling, HEAD_DIM, BASE), expected, rtol=5e-7)


@pytest.mark.parametrize(("target", "factor"), TARGETS.items())
def test_dimension_ramp_is_megatrons(target: int, factor: float) -> None:
    from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import YarnRotaryEmbedding

    from megatron_ultralong.mcore.cpu import cpu_backend

    with cpu_backend():
        expected = YarnRotaryEmbedding(
            HEAD_DIM,
            rotary_base=BASE,
            scaling_factor=factor,
            original_max_position_embeddings=8192,
            beta_fast=4.0,
            beta_slow=1.0,
            use_cpu_initialization=True,
        )
        angles, concentration = expected.forward(2)  # position 1: the angles are the frequencies
    actual = yarn.inv_freq(YarnConfig(factor, ramp="dimensions"), HEAD_DIM, BASE)
    # Megatron works in float32: each of its few operations rounds by 6e-8.
    np.testing.assert_allclose(actual, angles[1, 0, 0, : HEAD_DIM // 2].double().numpy(), rtol=5e-7)
    assert concentration == pytest.approx(yarn.yarn_attention_factor(factor))
    assert target == factor * 8192


def exact_cos_sin(scaling: YarnConfig, position: int, dimension: int) -> tuple[float, float]:
    """Cos and sin to 50 digits, by the paper's formula."""
    with mpmath.workdps(50):
        theta = mpmath.mpf(BASE) ** (mpmath.mpf(-2 * dimension) / HEAD_DIM)
        length, two_pi = scaling.original_max_position_embeddings, 2 * mpmath.pi
        if scaling.ramp == "rotations":
            fast, slow = scaling.beta_fast, scaling.beta_slow
            gamma = (length * theta / two_pi - slow) / (mpmath.mpf(fast) - slow)
        else:

            def with_rotations(n: float) -> mpmath.mpf:
                return HEAD_DIM * mpmath.log(length / (n * two_pi)) / (2 * mpmath.log(BASE))

            low = mpmath.floor(with_rotations(scaling.beta_fast))
            high = mpmath.ceil(with_rotations(scaling.beta_slow))
            gamma = 1 - (dimension - low) / (high - low)
        gamma = min(max(gamma, mpmath.mpf(0)), mpmath.mpf(1))
        angle = position * ((1 - gamma) * theta / scaling.scaling_factor + gamma * theta)
        return float(mpmath.cos(angle)), float(mpmath.sin(angle))


@pytest.mark.parametrize("position", [1, 8191, 1_048_575, 2_097_151, 4_194_303])
@pytest.mark.parametrize("ramp", ["rotations", "dimensions"])
def test_cos_and_sin_are_exact_at_any_position(position: int, ramp: yarn.Ramp) -> None:
    scaling = YarnConfig(512.0, ramp=ramp)
    frequencies = yarn.inv_freq(scaling, HEAD_DIM, BASE)
    angles = yarn.wrapped_angles(np.asarray([position]), frequencies)
    assert np.abs(angles).max() <= math.pi
    local = torch.from_numpy(angles.astype(np.float32))[0]  # as the rotary module hands them on
    exact = np.asarray([exact_cos_sin(scaling, position, d) for d in range(HEAD_DIM // 2)])
    np.testing.assert_allclose(torch.cos(local).numpy(), exact[:, 0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(torch.sin(local).numpy(), exact[:, 1], rtol=0, atol=1e-6)


def test_float32_angles_would_fail_that_test() -> None:
    scaling = YarnConfig(512.0)
    frequencies = torch.from_numpy(yarn.inv_freq(scaling, HEAD_DIM, BASE)).float()
    exact = [exact_cos_sin(scaling, 4_194_303, d)[0] for d in range(HEAD_DIM // 2)]
    error = np.abs(torch.cos(4_194_303.0 * frequencies).numpy() - np.asarray(exact)).max()
    assert error > 0.01


def test_ramps_differ_where_they_are_said_to() -> None:
    rotations = yarn.inv_freq(YarnConfig(128.0), HEAD_DIM, BASE)
    dimensions = yarn.inv_freq(YarnConfig(128.0, ramp="dimensions"), HEAD_DIM, BASE)
    different = np.flatnonzero(~np.isclose(rotations, dimensions, rtol=1e-9))
    assert set(different) == set(range(29, 35))


yarn_configs = st.builds(
    YarnConfig,
    scaling_factor=st.floats(1.0, 1024.0),
    original_max_position_embeddings=st.integers(64, 131_072),
    beta_fast=st.floats(2.0, 64.0),
    beta_slow=st.floats(0.25, 1.9),
    ramp=st.sampled_from(["rotations", "dimensions"]),
    attention_factor=st.floats(0.5, 4.0),
)


@given(yarn_configs)
def test_blocks_go_there_and_back(scaling: YarnConfig) -> None:
    if scaling.ramp == "rotations":
        scaling = dataclasses.replace(scaling, attention_factor=1.0)
    assert yarn.from_hf_rope_scaling(yarn.hf_rope_scaling(scaling)) == scaling


@given(yarn_configs)
def test_frequencies_lie_between_plain_and_interpolated(scaling: YarnConfig) -> None:
    plain = yarn.rope_inv_freq(HEAD_DIM, BASE)
    actual = yarn.yarn_inv_freq(scaling, HEAD_DIM, BASE)
    assert (actual <= plain * (1 + 1e-15)).all()
    assert (actual >= plain / scaling.scaling_factor * (1 - 1e-15)).all()


@pytest.mark.parametrize("block", [None, {"rope_type": "default"}])
def test_no_block_is_no_scaling(block: dict[str, object] | None) -> None:
    assert yarn.from_hf_rope_scaling(block) is None


def test_a_temperature_that_no_block_has_is_refused() -> None:
    with pytest.raises(InputError, match="'llama3' has no temperature"):
        yarn.hf_rope_scaling(YarnConfig(8.0, attention_factor=1.2))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' is not supported"),
        ({"rope_type": "llama3", "factor": 8.0}, "missing keys .*high_freq_factor"),
        ({"rope_type": "linear", "factor": 2.0, "mscale": 1}, r"unknown keys \['mscale'\]"),
        ({"rope_type": "linear", "factor": 0.5}, "at least 1, not 0.5"),
    ],
)
def test_unknown_blocks_are_refused(block: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        yarn.from_hf_rope_scaling(block)


def test_a_ramp_that_runs_backwards_is_refused() -> None:
    with pytest.raises(InputError, match=r"beta_slow \(8.0\) .* below beta_fast \(4.0\)"):
        YarnConfig(8.0, beta_slow=8.0)
