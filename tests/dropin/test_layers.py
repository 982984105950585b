"""Layers of Megatron-LM's own choice with our attention, and what they are on several ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dropin.megatron_lm import Tiny, needs_megatron_lm, tiny_message, tiny_run
from tests.ranks import run_on_ranks

needs_megatron_lm()

SPEC = ("--spec", "megatron_ultralong.spec", "ring_local_spec")
# Else Megatron-LM takes the mean of each context-parallel rank's own tokens.
PER_TOKEN = "--calculate-per-token-loss"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of Megatron-LM alone."""
    folder = tmp_path_factory.mktemp("plain")
    losses: list[float] = run_on_ranks(1, tiny_run, Tiny(folder, (PER_TOKEN,), plain=True))[0]
    return losses


@pytest.mark.parametrize(
    "words",
    [
        ("--context-parallel-size", "2"),
        ("--context-parallel-size", "2", *SPEC),
        ("--context-parallel-size", "2", "--cp-comm-type", "a2a"),
        ("--tensor-model-parallel-size", "2", "--sequence-parallel", *SPEC),
        ("--context-parallel-size", "2", "--use-distributed-optimizer"),
    ],
    ids=lambda words: " ".join(words).replace("megatron_ultralong.", ""),
)
def test_two_ranks_train_as_one(plain: list[float], tmp_path: Path, words: tuple[str, ...]) -> None:
    found = run_on_ranks(2, tiny_run, Tiny(tmp_path, (PER_TOKEN, *words)))[0]
    if "--sequence-parallel" in words:  # other initial weights: random states differ by rank
        assert found[-1] < found[0]
        return
    assert found == pytest.approx(plain, rel=1e-5)  # float32 sums in another order


@pytest.mark.parametrize(
    "words",
    [
        ("--normalization", "LayerNorm", "--qk-layernorm", "--add-qkv-bias"),
        ("--rotary-percent", "0.5", "--rotary-interleaved"),
    ],
    ids=" ".join,
)
def test_the_spec_by_name_is_of_the_arguments(tmp_path: Path, words: tuple[str, ...]) -> None:
    expected = run_on_ranks(1, tiny_run, Tiny(tmp_path / "plain", words, plain=True))[0]
    found = run_on_ranks(1, tiny_run, Tiny(tmp_path / "ours", (*words, *SPEC)))[0]
    assert found == pytest.approx(expected, rel=1e-5)  # float32 sums in another order


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--window-size", "16,0"), "--window-size is (16, 0)"),
        (("--softmax-type", "learnable"), "--softmax-type is 'learnable'"),
        (("--multi-latent-attention",), "--multi-latent-attention is True"),
        (("--attention-dropout", "0.1"), "--attention-dropout is 0.1"),
        (
            ("--rotary-percent", "0.5", "--ultralong-rope-scaling", "yarn"),
            "--rotary-percent is 0.5",
        ),
        (
            ("--num-experts", "4", "--ultralong-recompute-granularity", "full"),
            "--num-experts is 4",
        ),
        (("--mtp-num-layers", "1", "--ultralong-loss-tile-size", "16"), "--mtp-num-layers is 1"),
        (
            ("--ultralong-data-path", "rows", "--reset-attention-mask"),
            "--reset-attention-mask is True",
        ),
        (
            ("--ultralong-data-path", "rows", "--dataloader-type", "cyclic"),
            "--dataloader-type is 'cyclic'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_ours_would_not_honour_is_refused(
    tmp_path: Path, words: tuple[str, ...], named: str
) -> None:
    message = run_on_ranks(1, tiny_message, Tiny(tmp_path, words))[0]
    assert named in message
    assert "Traceback" not in message


def test_heads_that_ranks_cannot_exchange_are_refused(tmp_path: Path) -> None:
    heads = ("--group-query-attention", "--num-query-groups", "1")
    words = ("--context-parallel-size", "2", "--cp-comm-type", "a2a", *heads)
    for message in run_on_ranks(2, tiny_message, Tiny(tmp_path, words)):
        assert "--cp-comm-type a2a exchanges heads among 2 ranks" in message
        assert "a rank has 1 key heads" in message
