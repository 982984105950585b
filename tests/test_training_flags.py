"""The flags of the training verbs: one that comes or goes is noticed."""

from __future__ import annotations

import re

import pytest

from megatron_ultralong import cli
from megatron_ultralong.config.recipes import PRETRAIN_RECIPES, SFT_RECIPES

PRETRAIN_FLAGS = {
    "--adam-beta1",
    "--adam-beta2",
    "--adam-eps",
    "--angle-precision",
    "--apply-rope-fusion",
    "--async-save",
    "--attention",
    "--attention-factor",
    "--beta-fast",
    "--beta-slow",
    "--clip-grad",
    "--context-parallel-size",
    "--cp-assignment",
    "--cp-comm-type",
    "--data-path",
    "--deterministic-mode",
    "--distributed-timeout-minutes",
    "--document-mask",
    "--elementwise-kernel",
    "--eval-interval",
    "--eval-iters",
    "--exit-duration-in-mins",
    "--exp-avg-dtype",
    "--exp-avg-sq-dtype",
    "--fp8-format",
    "--fp8-recipe",
    "--global-batch-size",
    "--hierarchical-context-parallel-sizes",
    "--load",
    "--log-interval",
    "--loss-spike-deviations",
    "--loss-tile-size",
    "--lr",
    "--lr-decay-style",
    "--lr-warmup-iters",
    "--main-grads-dtype",
    "--main-params-dtype",
    "--max-host-memory-gib",
    "--max-save-failures",
    "--micro-batch-size",
    "--microbatch-group-size-per-virtual-pipeline-stage",
    "--min-lr",
    "--num-layers-in-first-pipeline-stage",
    "--num-layers-in-last-pipeline-stage",
    "--num-virtual-stages-per-pipeline-rank",
    "--offload-activations",
    "--max-skipped-iters",
    "--on-nan",
    "--optimizer-cpu-offload",
    "--optimizer-offload-fraction",
    "--original-max-position-embeddings",
    "--overlap-cpu-optimizer-d2h-h2d",
    "--peak-tflops",
    "--pipeline-model-parallel-size",
    "--precision",
    "--profile",
    "--profile-ranks",
    "--profile-step-end",
    "--profile-step-start",
    "--ramp",
    "--recompute-granularity",
    "--reset-position-ids",
    "--rope-scaling",
    "--rope-scaling-factor",
    "--save",
    "--save-interval",
    "--save-retain-interval",
    "--save-retain-last",
    "--seed",
    "--seq-length",
    "--sequence-parallel",
    "--sequence-tile-size",
    "--tensor-model-parallel-size",
    "--tensorboard",
    "--train-iters",
    "--train-tokens",
    "--transformer-impl",
    "--use-precision-aware-optimizer",
    "--verify-checksums",
    "--wandb-project",
    "--weight-decay",
}


@pytest.mark.parametrize(
    ("verb", "recipe", "flags"),
    [
        ("pretrain", next(iter(PRETRAIN_RECIPES)), PRETRAIN_FLAGS),
        ("sft", next(iter(SFT_RECIPES)), PRETRAIN_FLAGS | {"--num-epochs"}),
    ],
)
def test_the_flags_of_training_are_these(
    capsys: pytest.CaptureFixture[str], verb: str, recipe: str, flags: set[str]
) -> None:
    cli.main([verb, recipe, "--help-all"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  --")]
    shown = {word.strip(",") for line in lines for word in line.split()}
    found = {word for word in shown if re.fullmatch("--(?!no-)[a-z0-9-]*[a-z0-9]", word)}
    assert found - {"--help", "--config", "--dry-run", "--ranks"} == flags
