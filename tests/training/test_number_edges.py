"""What a range takes at its ends, a run takes too."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ultralong import cli
from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from tests.edges import flags, inside

RECIPE = next(name for name in PRETRAIN_RECIPES if name.startswith("demo"))
SIZES = {
    "train_iters",
    "train_tokens",
    "micro_batch_size",
    "global_batch_size",
    "seq_length",
    "lr_warmup_iters",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "hierarchical_context_parallel_sizes",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "num_virtual_stages_per_pipeline_rank",
    "microbatch_group_size_per_virtual_pipeline_stage",
    "rope_scaling_factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
}
"""Bound by one another, by the rows and by the number of ranks, more than by their ranges."""


@pytest.mark.slow
@pytest.mark.parametrize("edge", [0, 1])
def test_a_run_at_the_ends_of_all_ranges(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], edge: int
) -> None:
    words = ["pretrain", RECIPE, "--load", str(tiny / "base"), "--data-path", str(tiny / "rows")]
    words += ["--seq-length", "128", "--original-max-position-embeddings", "64"]
    words += ["--context-parallel-size", "1", "--train-iters", "2", "--lr-warmup-iters", "0"]
    words += ["--recompute-granularity", "keep_attention", "--save", str(tmp_path / "run")]
    given = 0
    for _, number in flags("pretrain"):
        if number.name not in SIZES:
            words += ["--" + number.name.replace("_", "-"), str(inside(number)[edge])]
            given += 1
    assert given > 25
    cli.main(words)
    shown = " ".join("".join(capfd.readouterr()).split())
    assert "done: iterations 1 to 2" in shown
    assert "0 skipped" in shown
