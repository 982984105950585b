"""What a start prints before it trains: configuration, assumptions, rotary embedding."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ultralong import cli
from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from tests.command_line import pretrain_words, refusal, write_inputs
from tests.models import write_llama


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


def test_a_dry_run_prints_the_resolved_configuration(
    inputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    cli.main(pretrain_words(inputs, "--dry-run"))
    assert "rope_scaling_factor: 8.0" in capsys.readouterr().out
    assert not (inputs / "saved").exists()


def test_a_dry_run_says_what_it_assumed(
    inputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside torchrun: as many ranks as the layout needs, here CP 2."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cli.main(pretrain_words(inputs, "--dry-run"))
    shown = capsys.readouterr().out
    assert "# assumed: 2 ranks, the fewest that the flags allow (WORLD_SIZE is not set" in shown
    assert "# assumed: 1 rank on this host" in shown
    assert "plan for 2 x " in shown
    traced = ("--profile", "--profile-ranks", "0", "2", "--global-batch-size", "2")
    cli.main(pretrain_words(inputs, "--dry-run", *traced))
    assert "# assumed: 4 ranks, the fewest that" in capsys.readouterr().out, "rank 2 is there"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    cli.main(pretrain_words(inputs, "--dry-run", "--global-batch-size", "2"))
    shown = capsys.readouterr().out
    assert "# assumed: " not in shown
    assert "plan for 4 x " in shown


def test_a_written_configuration_works_from_another_folder(
    inputs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(inputs)
    words = [word.removeprefix(f"{inputs}/") for word in pretrain_words(inputs, "--dry-run")]
    assert "megatron" in words
    cli.main(words)
    text = capsys.readouterr().out
    assert f"load: {inputs / 'megatron'}\n" in text
    (tmp_path / "config.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    cli.main(["pretrain", "--config", "config.yaml", "--dry-run"])
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if not line.startswith("#")] == [
        line for line in text.splitlines() if not line.startswith("#")
    ]


@pytest.fixture(scope="module")
def scaled(inputs: Path) -> Path:
    """A checkpoint of 64 positions that llama3's block has scaled to 512."""
    block = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0}
    block |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    block |= {"original_max_position_embeddings": 64}
    write_llama(
        inputs / "scaled-hf",
        num_hidden_layers=2,
        max_position_embeddings=512,
        rope_parameters=block,
    )
    import_checkpoint(ImportConfig(inputs / "scaled-hf", inputs / "scaled"))
    return inputs / "scaled"


@pytest.mark.parametrize(
    ("more", "after", "warning"),
    [
        ((), "the same", ""),
        (("--rope-scaling", "none"), "not scaled (64 positions)", "beyond the 64 positions"),
        (
            ("--rope-scaling", "linear", "--rope-scaling-factor", "4"),
            "linear x4 over 64 (256 positions)",
            "",
        ),
        (
            ("--rope-scaling", "yarn", "--rope-scaling-factor", "2"),
            "llama3 x2 over 8,192, betas 1 and 4 (16,384 positions)",
            "# warning: original_max_position_embeddings is 8,192, and the checkpoint's context "
            "before any scaling is 64",
        ),
        (
            ("--rope-scaling-factor", "4"),
            "the same",
            "# warning: rope_scaling_factor 4.0: without effect under rope_scaling 'keep'",
        ),
    ],
)
def test_a_start_says_what_becomes_of_the_rotary_embedding(
    inputs: Path,
    scaled: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    more: tuple[str, ...],
    after: str,
    warning: str,
) -> None:
    """From a file that does not speak of it: the checkpoint's stays."""
    (tmp_path / "run.yaml").write_text("train_iters: 1\noptimizer: {lr: 1e-4}\n")
    words = ("pretrain", "--config", str(tmp_path / "run.yaml"), "--load", str(scaled), *more)
    words += ("--data-path", str(inputs / "rows"), "--dry-run")
    if "beyond" in warning:
        assert warning in refusal(capsys, *words)
        return
    cli.main(words)
    shown = capsys.readouterr().out
    before = "llama3 x8 over 64, betas 1 and 4 (512 positions)"
    assert f"# rotary: {before} -> {after}\n" in shown
    assert warning in shown
    assert ("original_max_position_embeddings is" in shown) == ("original" in warning)


def test_a_start_says_that_a_learning_rate_may_be_a_slip(
    inputs: Path, scaled: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("train_iters: 1\n")
    words = ("pretrain", "--config", str(tmp_path / "run.yaml"), "--load", str(scaled))
    words += ("--data-path", str(inputs / "rows"), "--dry-run", "--lr")
    cli.main((*words, "1e-2"))
    assert "# warning: lr " not in capsys.readouterr().out
    cli.main((*words, "3e-1"))
    assert "# warning: lr 0.3 is above 0.01: Adam moves each weight" in capsys.readouterr().out


def test_a_run_says_it_too(
    inputs: Path, scaled: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("train_iters: 1\nprecision: fp32\n")
    words = ("pretrain", "--config", str(tmp_path / "run.yaml"), "--load", str(scaled))
    words += (
        "--data-path",
        str(inputs / "rows"),
        "--no-tensorboard",
        "--save",
        str(tmp_path / "x"),
    )
    cli.main(words)
    shown = " ".join("".join(capfd.readouterr()).split())
    assert "rotary: llama3 x8 over 64, betas 1 and 4 (512 positions) -> the same" in shown
    assert f"a new run in {tmp_path / 'x'} " in shown
    cli.main((*words, "--train-iters", "2"))
    shown = " ".join("".join(capfd.readouterr()).split())
    assert "resumed at iteration 1 of 2" in shown
    assert "a new run" not in shown
