"""Recipes: the named ones as they were published, and what those of any length work out."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong import cli
from megatron_ultralong.checkpoint.disk.metadata import load_metadata, save_metadata, unseal
from megatron_ultralong.cli.dispatch import read_training
from megatron_ultralong.cli.verbs import TrainingVerb
from megatron_ultralong.config.plain_values import flat_fields
from megatron_ultralong.config.recipes import (
    EXTENSIONS,
    FEWEST_ITERATIONS,
    FOR_PRETRAIN,
    ITERATION_TOKENS,
    RECIPES,
    SFT_RECIPES,
    batch_for,
    extend,
    scaling_factor,
    small,
)
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.training import PretrainConfig, SftConfig
from megatron_ultralong.model.yarn import YarnConfig, hf_rope_scaling
from megatron_ultralong.training.early_checks import check_packed_run
from tests.command_line import refusal, write_inputs

_ROPE = {
    "rope.rope_scaling": "yarn",
    "rope.original_max_position_embeddings": 8192,
    "rope.beta_fast": 4.0,
    "rope.beta_slow": 1.0,
    "rope.ramp": "rotations",
    "rope.attention_factor": 1.0,
}
_8B = {
    **_ROPE,
    "train_iters": 150,
    "save_interval": 25,
    "precision": "bf16",
    "parallel.tensor_model_parallel_size": 8,
    "parallel.sequence_parallel": True,
    "data.document_mask": "none",
    "optimizer.lr": 3e-5,
    "optimizer.lr_warmup_iters": 10,
}
_NO_RECOMPUTATION = {"memory.recompute_granularity": "none", "memory.loss_tile_size": 0}
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama3.1-8b-1m": {
        **_8B,
        "global_batch_size": 8,
        "data.seq_length": 1_048_576,
        "rope.rope_scaling_factor": 128.0,
        "parallel.context_parallel_size": 4,
    },
    "llama3.1-8b-2m": {
        **_8B,
        "global_batch_size": 4,
        "data.seq_length": 2_097_152,
        "rope.rope_scaling_factor": 256.0,
        "parallel.context_parallel_size": 16,
    },
    "llama3.1-8b-4m": {
        **_8B,
        "global_batch_size": 2,
        "data.seq_length": 4_194_304,
        "rope.rope_scaling_factor": 512.0,
        "parallel.context_parallel_size": 16,
    },
    "demo-cpu": {
        **_NO_RECOMPUTATION,
        "train_iters": 150,
        "global_batch_size": 1,
        "save_interval": 25,
        "log_interval": 10,
        "precision": "fp32",
        "rope.rope_scaling": "yarn",
        "rope.rope_scaling_factor": 8.0,
        "rope.original_max_position_embeddings": 512,
        "rope.ramp": "dimensions",
        "rope.attention_factor": "yarn",
        "parallel.context_parallel_size": 2,
        "data.seq_length": 4096,
        "optimizer.lr": 3e-4,
        "optimizer.lr_warmup_iters": 6,
        "optimizer.lr_decay_style": "linear",
    },
    "llama3.1-8b-sft": {
        "global_batch_size": 128,
        "save_interval": 50,
        "precision": "bf16",
        "num_epochs": 1.0,
        "parallel.tensor_model_parallel_size": 8,
        "parallel.sequence_parallel": True,
        "optimizer.lr": 5e-6,
        "optimizer.lr_warmup_iters": 10,
    },
    "demo-sft-cpu": {
        **_NO_RECOMPUTATION,
        "train_iters": 80,
        "global_batch_size": 1,
        "save_interval": 25,
        "log_interval": 10,
        "precision": "fp32",
        "parallel.context_parallel_size": 2,
        "parallel.cp_assignment": "balanced",
        "optimizer.lr": 1.2e-4,
        "optimizer.lr_warmup_iters": 5,
        "optimizer.lr_decay_style": "linear",
    },
}
"""What each has beside the defaults of its class."""


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in EXTENSIONS])
def test_a_named_recipe_is_as_published(name: str) -> None:
    recipe = RECIPES[name]()
    default = SftConfig() if isinstance(recipe, SftConfig) else PretrainConfig()
    assert flat_fields(recipe) == {**flat_fields(default), **PUBLISHED[name]}


@given(st.integers(2, 2**31 - 1), st.integers(2**12, 2**20))
def test_a_row_fits_its_embedding(seq_length: int, original: int) -> None:
    """At every length, also where factor x original is no whole number."""
    for recipe in EXTENSIONS.values():
        config = recipe(seq_length, original)
        config.check_positions(original, None)
        assert config.rope.max_positions(original, None) in (seq_length, max(seq_length, original))
        assert config.rope.warnings(original, None) == config.rope.beyond_paper
        factor = config.rope.rope_scaling_factor
        assert math.isclose(factor, max(1.0, seq_length / original), rel_tol=1e-12)
        hf_rope_scaling(config.rope.scaling(None))  # it can be exported


@given(st.integers(13, 24))
def test_an_iteration_has_the_papers_tokens(power: int) -> None:
    config = extend(2**power, 8192)
    assert config.global_batch_size * config.data.seq_length in (ITERATION_TOKENS, 2**power)


@given(st.integers(1, 10_000), st.integers(0, 10**7))
def test_few_rows_make_small_iterations(usual: int, num_rows: int) -> None:
    batch = batch_for(usual, num_rows)
    assert 1 <= batch <= usual
    if batch < usual:
        assert num_rows // (2 * batch + 1) < FEWEST_ITERATIONS
    assert batch == 1 or num_rows // batch >= FEWEST_ITERATIONS


def test_before_the_length_is_known_the_embedding_is_kept() -> None:
    for recipe in (extend, small):
        assert recipe(0, 8192).rope.rope_scaling == recipe(4096, 0).rope.rope_scaling == "keep"
    assert set(EXTENSIONS) <= set(FOR_PRETRAIN) <= set(RECIPES)
    assert scaling_factor(100, 8192) == 1.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 64 positions, and rows of 128 tokens."""
    folder = tmp_path_factory.mktemp("extension")
    write_inputs(folder)
    return folder


def resolved(inputs: Path, *words: str, recipe: str = "extend") -> tuple[PretrainConfig, str]:
    """What a command line asks for, checked, and the line that says how."""
    folders = ("--load", str(inputs / "megatron"), "--data-path", str(inputs / "rows"))
    verb = cli.VERBS["pretrain"]
    assert isinstance(verb, TrainingVerb)
    found, _, num_ranks, line = read_training("pretrain", verb, [recipe, *folders, *words])
    assert line.startswith(f"{recipe}: ")
    assert "\n" not in line
    return check_packed_run(found, num_ranks).config, line


def test_all_of_it_follows_from_the_checkpoint(inputs: Path) -> None:
    found, line = resolved(inputs)
    assert found.rope == RopeConfig("yarn", 2.0, 64)
    assert found.data.seq_length == 128, "that of the rows"
    assert "not scaled (64 positions); rows of 128 are 2 x the 64;" in line
    assert f"{found.train_iters} iterations of {found.global_batch_size} row" in line
    assert found.optimizer.lr == 3e-5


def test_a_flag_wins_over_what_is_worked_out(inputs: Path) -> None:
    words = ("--global-batch-size", "3", "--train-tokens", "7,680", "--lr", "1e-4")
    found, line = resolved(inputs, *words)
    assert (found.global_batch_size, found.train_iters) == (3, 20)
    assert (found.optimizer.lr, found.optimizer.lr_warmup_iters) == (1e-4, 1)
    assert "20 iterations of 3 rows (7,680 tokens" in line
    found, _ = resolved(inputs, "--rope-scaling", "linear", recipe="small")
    assert (found.rope.rope_scaling, found.rope.rope_scaling_factor) == ("linear", 2.0)


def test_ranks_share_the_row(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    found, line = resolved(inputs, "--tensor-model-parallel-size", "2")
    assert found.parallel.context_parallel_size == 2
    assert found.parallel.sequence_parallel
    assert line.endswith("CP 2")
    found, _ = resolved(inputs, "--context-parallel-size", "1", "--global-batch-size", "8")
    assert found.parallel.context_parallel_size == 1


@pytest.mark.parametrize(
    ("scaling", "positions", "factor", "words"),
    [
        (YarnConfig(2.0, 32), 64, 4.0, "llama3 x2 over 32"),
        (YarnConfig(8.0, 16), 128, None, "enough for rows of 128: its rotary embedding is kept"),
    ],
)
def test_a_scaling_is_replaced_or_enough(
    inputs: Path,
    tmp_path: Path,
    scaling: YarnConfig,
    positions: int,
    factor: float | None,
    words: str,
) -> None:
    (tmp_path / "rows").symlink_to(inputs / "rows")
    source = inputs / "megatron"
    (tmp_path / "megatron").mkdir()
    for path in source.iterdir():
        if path.name not in ("ultralong.json", "checksums.json"):
            (tmp_path / "megatron" / path.name).symlink_to(path)
    metadata = load_metadata(source)
    model = dataclasses.replace(metadata.model, max_position_embeddings=positions)
    unseal(tmp_path / "megatron")
    save_metadata(
        tmp_path / "megatron", dataclasses.replace(metadata, model=model, rope_scaling=scaling)
    )
    found, line = resolved(tmp_path)
    assert words in line
    if factor is None:
        assert found.rope.rope_scaling == "keep"
    else:
        assert found.rope.rope_scaling_factor == factor


def test_a_run_has_one_length(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--load", "l", "--data-path", "d", "--train-iters", "5", "--train-tokens", "1M")
    for verb, recipe in (("pretrain", "demo-cpu"), ("plan", "demo-cpu"), ("sft", "demo-sft-cpu")):
        more = ("--gpus", "2") if verb == "plan" else ()
        error = refusal(capsys, verb, recipe, *words, *more)
        assert "--train-iters and --train-tokens both set the length of the run" in error
    error = refusal(capsys, "sft", "demo-sft-cpu", *words[:-2], "--num-epochs", "2")
    assert "--train-iters and --num-epochs both set the length of the run" in error
    error = refusal(capsys, "pretrain", "demo-cpu", *words[:-2], "--num-epochs", "2")
    assert "--num-epochs" in error
    assert "both say" not in error


@pytest.mark.parametrize("recipe", SFT_RECIPES)
def test_a_typed_end_wins_over_the_end_of_a_recipe_or_a_file(recipe: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("train_iters: 7\ntrain_tokens: 9000\nnum_epochs: 5.0\n")
    whole = (("--train-iters 4", 1.0), ("--train-tokens 4K", 1.0), ("--num-epochs 2", 2.0))
    ends = {
        "--num-epochs 3": (0, 0.0, 3.0),
        "--num-epochs=3 --train-iters=0": (0, 0.0, 3.0),
        **{
            f"{zero} --num_epochs 3": (0, 0.0, 3.0)
            for flag in ("--train-iters", "--train_iters", "--train-tokens", "--train_tokens")
            for zero in (f"{flag} 0", f"{flag}=0")
        },
        "--train-tokens 0 --train_iters 4": (4, 0.0, None),
        "--train-iters 4": (4, 0.0, None),
    }
    verb = cli.VERBS["sft"]
    assert isinstance(verb, TrainingVerb)
    for start in ([recipe], ["--config", str(file)]):
        for flags, (iterations, tokens, epochs) in ends.items():
            found, *_ = read_training(
                "sft", verb, [*start, "--load", "l", "--data-path", "d", *flags.split()]
            )
            assert (found.train_iters, found.train_tokens) == (iterations, tokens)
            assert epochs in (None, found.num_epochs)
        for flags, its in whole:  # nothing is left that says another length
            words = [*start, "--load", "l", "--data-path", "d", *flags.split()]
            assert read_training("sft", verb, words)[0].num_epochs == its


def test_a_file_has_one_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, words = tmp_path / "config.yaml", ("--load", "l", "--data-path", "d")
    for verb in ("pretrain", "sft"):
        file.write_text("train_iters: 7\ntrain_tokens: 9000\n")
        error = refusal(capsys, verb, "--config", str(file), *words)
        assert "train_iters (7) and train_tokens (9,000) both set the length of the run" in error
        for flags in ("--train-iters 4", "--train-tokens 1K"):
            error = refusal(capsys, verb, "--config", str(file), *words, *flags.split())
            assert "both say" not in error


def test_the_line_tells_what_the_flags_made(inputs: Path) -> None:
    words = ("--lr", "0.5", "--lr-decay-style", "cosine", "--lr-warmup-iters", "3")
    for recipe in EXTENSIONS:
        found, line = resolved(inputs, *words, "--train-iters", "5", recipe=recipe)
        assert "lr 0.5 (cosine, warm-up 3)" in line
        assert found.optimizer.lr == 0.5
        assert "1 iteration of " in resolved(inputs, "--train-iters", "1", recipe=recipe)[1]


def test_a_dry_run_shows_it(capsys: pytest.CaptureFixture[str], inputs: Path) -> None:
    folders = ("--load", str(inputs / "megatron"), "--data-path", str(inputs / "rows"))
    cli.main(["pretrain", "small", *folders, "--train-tokens", "12.8K", "--dry-run"])
    shown = capsys.readouterr()
    found = yaml.safe_load(shown.out)
    assert (found["train_iters"], found["train_tokens"]) == (100, 0.0)
    assert found["rope"]["rope_scaling_factor"] == 2.0
    assert "100 iterations of 1 row (12,800 tokens" in shown.err
