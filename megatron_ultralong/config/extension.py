"""The recipes that fit any length: what a run is, given the length of its rows and a context.

What arXiv 2504.06214 states is marked "paper"; the rest is a documented default of this project.
"""

from __future__ import annotations

import math

from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.run import MemoryConfig
from megatron_ultralong.config.training import DataConfig, PretrainConfig

ITERATION_TOKENS = 8_388_608
"""Of an iteration at every length (paper: 2 rows of 4,194,304)."""
NUM_ITERATIONS = 150
"""Of a run, 1.26B tokens (paper)."""

FEWEST_ITERATIONS = 100
"""Of a run, where fewer rows than the paper's would make fewer: iterations get smaller first."""


def extend(seq_length: int, original: int) -> PretrainConfig:
    """The paper's recipe: YaRN from the context before any scaling to ``seq_length`` in one step.

    Args:
        seq_length: tokens of a row; 0: not known yet, and nothing that follows from it.
        original: context before any scaling; 0: the rotary embedding is kept.
    """
    return PretrainConfig(
        train_iters=NUM_ITERATIONS,
        global_batch_size=max(1, round(ITERATION_TOKENS / seq_length)) if seq_length else 1,
        save_interval=25,
        precision="bf16",
        # paper: YaRN over the raw base, alpha 1, beta 4; 128, 256, 512 over 8,192
        rope=_yarn(seq_length, original, ramp="rotations", attention_factor=1.0),
        data=DataConfig(seq_length=seq_length, document_mask="none"),  # paper: no document mask
        optimizer=OptimizerConfig(lr=3e-5, lr_warmup_iters=10),  # paper: 3e-5
    )


def small(seq_length: int, original: int) -> PretrainConfig:
    """The same for a model of millions of parameters, on a CPU.

    With YaRN's temperature and a higher rate: so small a model loses retrieval without the first,
    and learns little at the paper's rate (docs/log.md).
    """
    return PretrainConfig(
        train_iters=NUM_ITERATIONS,
        global_batch_size=1,
        save_interval=25,  # less than a second each
        log_interval=10,
        precision="fp32",
        # Local tokens of 4,096 logits are small, and two cores slow.
        memory=MemoryConfig(recompute_granularity="none", loss_tile_size=0),
        rope=_yarn(seq_length, original, ramp="dimensions", attention_factor="yarn"),
        parallel=ParallelConfig(),
        data=DataConfig(seq_length=seq_length),
        optimizer=OptimizerConfig(lr=3e-4, lr_warmup_iters=6, lr_decay_style="linear"),
    )


def batch_for(usual: int, num_rows: int) -> int:
    """Rows of an iteration: half of the usual ones, again and again, where rows are few."""
    while usual > 1 and num_rows // usual < FEWEST_ITERATIONS:
        usual //= 2
    return usual


def _yarn(seq_length: int, original: int, **others: object) -> RopeConfig:
    if not seq_length or not original:
        return RopeConfig()
    return RopeConfig("yarn", scaling_factor(seq_length, original), original, 4.0, 1.0, **others)  # type: ignore[arg-type]


def scaling_factor(seq_length: int, original: int) -> float:
    """``seq_length / original``, as the float whose product with ``original`` holds the row."""
    factor = max(1.0, seq_length / original)
    while math.floor(factor * original) < seq_length:
        factor = math.nextafter(factor, math.inf)
    return factor
