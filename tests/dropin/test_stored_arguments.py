"""Checkpoints of Megatron-LM alone, without ``ultralong.json``: their arguments are looked at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from tests.dropin.megatron_lm import Tiny, needs_megatron_lm, tiny_message, tiny_run
from tests.ranks import run_on_ranks

needs_megatron_lm()

CONTEXT = 64
"""--max-position-embeddings of variants.BASE."""
YARN = ("--ultralong-rope-scaling", "yarn", "--ultralong-rope-scaling-factor", "2")
BASE = ("--rotary-base", "20000", "--norm-epsilon", "1e-6")


@pytest.fixture(scope="module")
def saved_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run without the drop-in, over another base and another epsilon."""
    folder = tmp_path_factory.mktemp("saved_alone")
    save = ("--save", str(folder / "run"), "--save-interval", "3", "--ckpt-format", "torch_dist")
    run_on_ranks(1, tiny_run, Tiny(folder, (*BASE, *save), plain=True))
    return folder / "run"


def load(folder: Path) -> tuple[str, ...]:
    return ("--load", str(folder), "--finetune", "--no-load-optim", "--no-load-rng")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--rotary-base is 10000, and the checkpoint in"),
        (("--rotary-base", "20000"), "--norm-epsilon is 1e-05, and the checkpoint in"),
        (("--use-checkpoint-args",), "--norm-epsilon is 1e-05, and the checkpoint in"),
        ((*BASE, "--rotary-percent", "0.5"), ""),
    ],
)
def test_what_no_weight_tells_is_compared(
    saved_alone: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    given = Tiny(tmp_path, (*load(saved_alone), *words))
    if said:
        assert said in run_on_ranks(1, tiny_message, given)[0]
        return
    run_on_ranks(1, tiny_run, given)  # named on the command line: meant, and told


def test_the_original_context_is_that_of_their_run(saved_alone: Path, tmp_path: Path) -> None:
    save = ("--save", str(tmp_path / "run"), "--save-interval", "3")
    positions = ("--max-position-embeddings", "128")
    run_on_ranks(1, tiny_run, Tiny(tmp_path, (*load(saved_alone), *BASE, *YARN, *positions, *save)))
    found = load_metadata(tmp_path / "run")
    assert found.rope_scaling is not None
    assert vars(found.rope_scaling)["original_max_position_embeddings"] == CONTEXT
    assert found.model.max_position_embeddings == 2 * CONTEXT
    assert found.model.rotary_base == 20000


def test_an_extension_is_saved_apart(saved_alone: Path, tmp_path: Path) -> None:
    """Else the file of the folder gives weights of earlier iterations the embedding of later."""
    folder = shutil.copytree(saved_alone, tmp_path / "run")
    words = (*BASE, *YARN, "--max-position-embeddings", "128", "--save-interval", "3")
    words += ("--save", str(folder), "--override-opt-param-scheduler", "--train-iters", "6")
    for start in (("--load", str(folder)), load(folder)):  # resumed, and a new run
        found = run_on_ranks(1, tiny_message, Tiny(tmp_path, (*start, *words)))[0]
        assert f"--save {folder} holds checkpoints without ultralong.json, and this run" in found
        assert not (folder / "ultralong.json").exists()


def test_without_a_checkpoint_it_has_to_be_said(tmp_path: Path) -> None:
    found = run_on_ranks(1, tiny_message, Tiny(tmp_path, YARN))[0]
    assert "--ultralong-original-max-position-embeddings is not given, and there is no" in found


def test_a_lost_file_of_ours_is_missed(tmp_path: Path) -> None:
    save = ("--save", str(tmp_path / "run"), "--save-interval", "3")
    original = ("--ultralong-original-max-position-embeddings", "32")
    run_on_ranks(1, tiny_run, Tiny(tmp_path / "a", (*YARN, *original, *save)))
    (tmp_path / "run" / "ultralong.json").unlink()
    found = run_on_ranks(1, tiny_message, Tiny(tmp_path / "b", load(tmp_path / "run")))[0]
    assert "was trained with --ultralong-rope-scaling yarn, and ultralong.json" in found
