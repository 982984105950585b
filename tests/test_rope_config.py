"""What a rotary embedding becomes, over whatever scaling the checkpoint came with."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.training import PretrainConfig, SftConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.model.yarn import (
    LinearConfig,
    NtkConfig,
    Ramp,
    RopeScaling,
    YarnConfig,
    describe,
    from_hf_rope_scaling,
    inv_freq,
    raw_context,
)
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import numbers_of
from megatron_ultralong.training.config_file import load_config, save_config
from tests.edges import inside

RAW = 64
SOURCES: dict[str, tuple[RopeScaling, int]] = {
    "none": (None, RAW),
    "llama3 x8": (YarnConfig(8.0, RAW), 8 * RAW),
    # Llama 3.1's own: factor 8 over 8,192, and more positions than their product.
    "llama3 x8, more positions": (YarnConfig(8.0, RAW), 16 * RAW),
    "yarn x4": (YarnConfig(4.0, RAW, 32.0, 1.0, "dimensions", 1.14), 4 * RAW),
    "linear x2": (LinearConfig(2.0), 2 * RAW),
    "linear x1.5": (LinearConfig(1.5), 96),
    "ntk x4": (NtkConfig(4.0), 4 * RAW),
}
"""Scaling and positions of a checkpoint whose weights had 64 positions before it."""
TARGETS: dict[str, tuple[RopeConfig, RopeScaling, int]] = {
    "none": (RopeConfig("none"), None, RAW),
    "linear x4": (RopeConfig("linear", 4.0), LinearConfig(4.0), 4 * RAW),
    "ntk x3": (RopeConfig("ntk", 3.0), NtkConfig(3.0), 3 * RAW),
    "yarn x16": (RopeConfig("yarn", 16.0, RAW), YarnConfig(16.0, RAW), 16 * RAW),
    "yarn x4 with temperature": (
        RopeConfig("yarn", 4.0, RAW, ramp="dimensions", attention_factor="yarn"),
        YarnConfig(4.0, RAW, ramp="dimensions", attention_factor=1.1386294361119891),
        4 * RAW,
    ),
}


@pytest.mark.parametrize(("source", "target"), itertools.product(SOURCES, TARGETS))
def test_a_scaling_is_over_the_context_that_the_source_had_before_its_own(
    source: str, target: str
) -> None:
    (before, positions), (rope, after, expected) = SOURCES[source], TARGETS[target]
    assert raw_context(before, positions) == RAW
    assert rope.scaling(before) == after
    assert rope.max_positions(positions, before) == expected
    assert rope.warnings(positions, before) == ()


@pytest.mark.parametrize("source", SOURCES)
def test_keep_changes_nothing(source: str) -> None:
    scaling, positions = SOURCES[source]
    rope = RopeConfig("keep")
    assert rope.scaling(scaling) == scaling
    assert rope.max_positions(positions, scaling) == positions
    assert RopeConfig() == rope


def test_the_scaling_that_is_there_already_leaves_the_positions() -> None:
    scaling, positions = SOURCES["llama3 x8, more positions"]
    assert RopeConfig("yarn", 8.0, RAW).max_positions(positions, scaling) == positions


@given(st.integers(1, 2**20), st.floats(1.0, 1000.0), st.sampled_from(["linear", "ntk"]))
def test_a_chain_of_scalings_never_multiplies(raw: int, factor: float, method: str) -> None:
    rope = RopeConfig(method, factor)  # type: ignore[arg-type]
    once = rope.max_positions(raw, None)
    again = RopeConfig(method, 2.0)  # type: ignore[arg-type]
    assert raw_context(rope.scaling(None), once) == raw
    assert again.max_positions(once, rope.scaling(None)) == 2 * raw
    assert RopeConfig("none").max_positions(once, rope.scaling(None)) == raw


def test_the_recipe_of_1m_with_linear_is_made_for_1m() -> None:
    recipe = PRETRAIN_RECIPES["llama3.1-8b-1m"]().rope
    block = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for method in ("linear", "ntk"):
        rope = RopeConfig(method, recipe.rope_scaling_factor)  # type: ignore[arg-type]
        assert rope.max_positions(131072, from_hf_rope_scaling(block)) == 1_048_576


def test_what_may_not_be_meant_is_said() -> None:
    (told,) = RopeConfig("yarn", 4.0, 8192).warnings(512, YarnConfig(8.0, RAW))
    assert "original_max_position_embeddings is 8,192" in told
    assert "context before any scaling is 64" in told
    assert "--original-max-position-embeddings 64" in told
    (told,) = RopeConfig("keep", 4.0).warnings(512, None)
    assert "rope_scaling_factor 4.0: without effect under rope_scaling 'keep'" in told
    (told,) = RopeConfig("linear", 4.0, beta_fast=32.0).warnings(512, None)
    assert "warning: beta_fast 32.0: without effect under rope_scaling 'linear'" in told


def test_a_factor_beyond_the_paper_is_told() -> None:
    for factor, is_told in ((512.0, False), (512.1, True), (16384.0, True)):
        rope = RopeConfig("yarn", factor, 256)
        told = rope.warnings(256, None)
        assert bool(told) == is_told
        if told:
            assert f"--rope-scaling-factor {factor:,.6g} is beyond 512" in told[0]
            assert "rows of up to 131,072 tokens" in told[0]
    assert not RopeConfig("linear", 1000.0).warnings(256, None)


def test_scalings_are_described() -> None:
    assert describe(None, 64) == "not scaled (64 positions)"
    assert describe(LinearConfig(2.0), 128) == "linear x2 over 64 (128 positions)"
    assert describe(YarnConfig(8.0), 131072) == (
        "llama3 x8 over 8,192, betas 1 and 4 (131,072 positions)"
    )
    assert describe(YarnConfig(4.0, 64, 32.0, 1.0, "dimensions", 1.14), 256) == (
        "yarn x4 over 64, betas 1 and 32, temperature 1.14 (256 positions)"
    )


def edges(cls: type[object], name: str) -> list[float]:
    (number,) = (number for number in numbers_of(cls) if number.name == name)
    return inside(number)[:2]


def test_frequencies_are_finite_at_the_ends_of_all_ranges() -> None:
    scalings: list[RopeScaling] = [None]
    for factor in edges(YarnConfig, "scaling_factor"):
        scalings += [LinearConfig(factor), NtkConfig(factor)]
        for length, slow, fast, ramp in itertools.product(
            edges(YarnConfig, "original_max_position_embeddings"),
            edges(YarnConfig, "beta_slow"),
            edges(YarnConfig, "beta_fast"),
            get_args(Ramp),
        ):
            if slow < fast:
                scalings.append(YarnConfig(factor, int(length), fast, slow, ramp))
    assert len(scalings) > 10
    bases = edges(ModelConfig, "rotary_base")
    for scaling, base, head_dim in itertools.product(scalings, bases, (2, 4, 128, 2**14)):
        frequencies = inv_freq(scaling, head_dim, base)
        assert np.isfinite(frequencies).all()
        assert (frequencies >= 0).all()


def write(path: Path, values: object) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("kind", [PretrainConfig, SftConfig])
def test_a_file_that_says_nothing_of_the_embedding_keeps_it(
    tmp_path: Path, kind: type[PretrainConfig]
) -> None:
    more = {"num_epochs": 1.0} if kind is SftConfig else {}
    for rope in ({}, {"rope": {"angle_precision": "float32"}}):
        path = write(tmp_path / "run.yaml", {"train_iters": 3, **more, **rope})
        found = load_config(path, kind).rope
        assert found.rope_scaling == "keep"
        assert found.max_positions(512, YarnConfig(8.0, RAW)) == 512


def test_a_file_with_figures_of_no_scaling_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", {"rope": {"rope_scaling_factor": 8.0}})
    with pytest.raises(
        InputError, match=r"run\.yaml: rope has rope_scaling_factor, and no rope_scaling.*'keep'"
    ):
        load_config(path, PretrainConfig)


@pytest.mark.parametrize("name", PRETRAIN_RECIPES)
def test_a_recipe_comes_back_from_its_file(tmp_path: Path, name: str) -> None:
    recipe = PRETRAIN_RECIPES[name]()
    save_config(tmp_path / "run.yaml", recipe)
    assert load_config(tmp_path / "run.yaml", PretrainConfig) == recipe
