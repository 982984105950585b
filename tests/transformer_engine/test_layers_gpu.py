"""Layers of Transformer Engine on a GPU beside local ones from the same checkpoint.

The oracle is the same model in float32. In bf16 a product is rounded to eight bits; how far that
takes logits from the oracle is measured on local layers, and Transformer Engine's, which round in
other places but as often, may be about as far.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from megatron_ultralong.checkpoint.disk.folder import resolve, write_latest
from megatron_ultralong.checkpoint.disk.metadata import load_metadata, save_metadata
from megatron_ultralong.config.run import LOCAL_LAYERS, LayerConfig, MemoryConfig
from megatron_ultralong.mcore.compat import has_transformer_engine
from megatron_ultralong.model.yarn import YarnConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.training.verbs import check_run
from tests.transformer_engine.comparison import (
    FP8_LOSS,
    FP8_NORM,
    LOSS,
    NORM,
    assert_close,
    distance,
)
from tests.transformer_engine.wide import (
    BLOCKWISE,
    DELAYED,
    FULL,
    FUSED_ROPE,
    KEEP_ALL,
    TE,
    TE_ATTENTION,
    TENSORWISE,
    TILES,
    Log,
    logits,
    make_run,
    of_mask,
    train,
    weights,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not has_transformer_engine(), reason="no Transformer Engine"),
]


@pytest.mark.parametrize("layers", [TE, FUSED_ROPE, TE_ATTENTION], ids=["te", "rope", "attention"])
def test_logits_are_those_of_local_layers(
    trained: Path, exact: torch.Tensor, rounding: float, layers: LayerConfig
) -> None:
    # As many roundings, in other places: a fifth more at the most.
    assert distance(str(layers), logits(trained, layers), exact) <= 1.2 * rounding


@pytest.mark.parametrize(
    "layers", [LOCAL_LAYERS, FUSED_ROPE, TE_ATTENTION], ids=["local", "rope", "attention"]
)
def test_a_lost_temperature_would_show(
    tmp_path: Path, trained: Path, rounding: float, layers: LayerConfig
) -> None:
    """The same weights without it, which is what a kernel that ignores it would compute."""
    metadata = load_metadata(trained)
    assert isinstance(metadata.rope_scaling, YarnConfig)
    assert metadata.rope_scaling.attention_factor == 1.2
    scaling = dataclasses.replace(metadata.rope_scaling, attention_factor=1.0)
    cold = tmp_path / "cold"
    cold.mkdir()
    save_metadata(cold, dataclasses.replace(metadata, rope_scaling=scaling))
    weights, iteration = resolve(trained)
    (cold / weights.name).symlink_to(weights)
    write_latest(cold, iteration)
    apart = distance("no temperature", logits(cold, layers), logits(trained, layers))
    assert apart > 5 * rounding


@pytest.mark.parametrize("mask", ["none", "block"])
@pytest.mark.parametrize("memory", [KEEP_ALL, TILES], ids=["keep", "tiles"])
def test_runs_are_those_of_local_layers(
    wide: Path, local: dict[str, Log], memory: MemoryConfig, mask: str
) -> None:
    found = train(of_mask(make_run(wide, TE, memory=memory), mask))
    assert_close(f"te {mask}", found, local[mask], LOSS, NORM)


@pytest.mark.parametrize(
    ("layers", "memory"),
    [(FUSED_ROPE, TILES), (TE_ATTENTION, KEEP_ALL), (TE_ATTENTION, FULL)],
    ids=["rope, tiles", "attention", "attention, recomputed"],
)
def test_other_ways_run_too(
    wide: Path, local: dict[str, Log], layers: LayerConfig, memory: MemoryConfig
) -> None:
    found = train(make_run(wide, layers, memory=memory))
    assert_close(str(layers), found, local["none"], LOSS, NORM)


@pytest.mark.parametrize(
    ("layers", "memory"),
    [
        (TENSORWISE, KEEP_ALL),
        (TENSORWISE, TILES),
        (BLOCKWISE, TILES),
        (DELAYED, KEEP_ALL),
    ],
    ids=["tensorwise", "tensorwise, tiles", "blockwise, tiles", "delayed"],
)
def test_fp8_trains_like_bf16(
    wide: Path, local: dict[str, Log], layers: LayerConfig, memory: MemoryConfig
) -> None:
    found = train(make_run(wide, layers, memory=memory))
    assert_close(str(layers), found, local["none"], FP8_LOSS, FP8_NORM)


@pytest.mark.parametrize("layers", [TENSORWISE, BLOCKWISE], ids=["tensorwise", "blockwise"])
def test_fp8_is_what_computes(
    trained: Path, exact: torch.Tensor, rounding: float, layers: LayerConfig
) -> None:
    """Its rounding shows, and is no larger than its mantissa says."""
    found = distance(str(layers), logits(trained, layers), exact)
    # 2^-4 for each of two factors, sixteen times bf16's; sums over 256 average part of it out.
    assert 3 * rounding < found < 32 * rounding


def test_a_recomputed_fp8_layer_has_the_gradients_of_one_that_keeps(wide: Path) -> None:
    """The same maxima, the same quantised weights: the same bits, where rotary embeddings are those
    of Megatron-Core in both; compiled, a recomputed layer rounds them once less.
    """
    layers = dataclasses.replace(TENSORWISE, elementwise_kernel="torch")
    runs = [
        train(make_run(wide, layers, memory=memory, deterministic_mode=True))
        for memory in (KEEP_ALL, FULL)
    ]
    assert runs[0] == runs[1]


def test_a_recipe_that_the_device_lacks_is_refused(wide: Path) -> None:
    layers = dataclasses.replace(TE, fp8_format="e4m3", fp8_recipe="mxfp8")
    if torch.cuda.get_device_capability() >= (10, 0):
        pytest.skip("a device that has it")
    with pytest.raises(InputError, match=r"fp8_recipe 'mxfp8' cannot run here: .*tensorwise"):
        check_run(make_run(wide, layers), 1)


def test_what_could_not_be_repeated_or_resumed_is_refused(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", raising=False)
    with pytest.raises(InputError, match="needs NVTE_ALLOW_NONDETERMINISTIC_ALGO=0"):
        check_run(make_run(wide, TE_ATTENTION, deterministic_mode=True), 1)
    pytest.importorskip(
        "transformer_engine.pytorch._extra_state", reason="it reads what it has written"
    )
    monkeypatch.delenv("NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE", raising=False)
    with pytest.raises(InputError, match="export NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE=1"):
        check_run(make_run(wide, DELAYED, save=str(tmp_path / "run")), 1)


def test_checkpoints_go_both_ways(wide: Path, trained: Path, tmp_path: Path) -> None:
    """Bit by bit: what either kind of layers has written, both load."""
    train(make_run(wide, TE, save=str(tmp_path / "te")))
    for checkpoint in (wide / "base", trained, tmp_path / "te"):
        actual, expected = (weights(checkpoint, layers) for layers in (LOCAL_LAYERS, TE))
        assert sorted(actual) == sorted(expected)
        assert len(actual) == 3 + 6 * 2
        for name, weight in actual.items():
            assert torch.equal(weight, expected[name]), (checkpoint, name)


@pytest.mark.parametrize("layers", [TE, TENSORWISE, DELAYED], ids=["bf16", "tensorwise", "delayed"])
def test_a_resumed_run_is_bit_equal(
    wide: Path, tmp_path: Path, layers: LayerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE", "1")
    memory = KEEP_ALL if layers is DELAYED else TILES

    def run(save: str, train_iters: int) -> Log:
        folder = str(tmp_path / save)
        config = make_run(wide, layers, memory=memory, deterministic_mode=True, save=folder)
        return train(dataclasses.replace(config, train_iters=train_iters))

    whole, first, rest = run("whole", 4), run("parts", 2), run("parts", 4)
    assert (len(first), len(rest)) == (2, 2)
    assert first + rest == whole


@pytest.mark.parametrize(
    ("first", "then"),
    [(LOCAL_LAYERS, TE), (TE, LOCAL_LAYERS)],
    ids=["local, then te", "te, then local"],
)
def test_a_run_goes_on_with_the_other_layers(
    wide: Path, tmp_path: Path, local: dict[str, Log], first: LayerConfig, then: LayerConfig
) -> None:
    """Adam's states too: with new ones the third step would be another."""
    save = str(tmp_path / "run")
    train(make_run(wide, first, save=save, train_iters=2))
    found = train(make_run(wide, then, save=save))
    assert_close(f"{first} then {then}", found, local["none"][2:], LOSS, NORM)
