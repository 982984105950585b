"""Layouts of one to four ranks, and a training over the same rows on each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.run import MemoryConfig, RecomputeGranularity
from megatron_ultralong.config.training import DataConfig, PretrainConfig
from megatron_ultralong.sequence.document_mask import DocumentMask
from megatron_ultralong.training.telling.log import IterationRecord
from megatron_ultralong.training.verbs import pretrain

STEPS = 3
"""Of Adam's two updates the second has a momentum, and the third loss shows both."""
SEQ_LENGTH = 256
TP2, CP2, PP2 = (
    {f"{kind}_parallel_size": 2} for kind in ("tensor_model", "context", "pipeline_model")
)
VPP2: dict[str, Any] = {"num_virtual_stages_per_pipeline_rank": 2}
SP: dict[str, Any] = {"sequence_parallel": True}
LAYOUTS: dict[str, tuple[int, ParallelConfig]] = {  # name: (ranks, layout)
    "one": (1, ParallelConfig()),
    "one-rows": (1, ParallelConfig()),  # four rows a step
    "cp2": (2, ParallelConfig(**CP2)),
    "cp2-gather": (2, ParallelConfig(**CP2, cp_comm_type="all_gather")),
    "cp2-balanced": (2, ParallelConfig(**CP2, cp_assignment="balanced")),
    "cp2-heads": (2, ParallelConfig(**CP2, cp_comm_type="a2a")),
    "tp2": (2, ParallelConfig(**TP2)),
    "dp2": (2, ParallelConfig()),
    "pp2": (2, ParallelConfig(**PP2)),
    "tp2-sp": (2, ParallelConfig(**TP2, **SP)),
    "tp2-cp2": (4, ParallelConfig(**TP2, **CP2)),
    "tp2-cp2-sp": (4, ParallelConfig(**TP2, **CP2, **SP)),
    "cp4-heads-ring": (
        4,
        ParallelConfig(
            context_parallel_size=4,
            cp_comm_type="a2a+p2p",
            hierarchical_context_parallel_sizes=(2, 2),
        ),
    ),
    "cp2-pp2": (4, ParallelConfig(**CP2, **PP2)),
    "pp2-uneven": (2, ParallelConfig(**PP2, num_layers_in_first_pipeline_stage=1)),
    "vpp2": (2, ParallelConfig(**PP2, **VPP2)),
    "cp2-vpp2": (4, ParallelConfig(**CP2, **PP2, **VPP2)),
    "tp2-vpp2-sp": (
        4,
        ParallelConfig(
            **TP2, **PP2, **VPP2, **SP, microbatch_group_size_per_virtual_pipeline_stage=4
        ),
    ),
    # tied: the embedding is the output layer
    "tied-one": (1, ParallelConfig()),
    "tied-pp2": (2, ParallelConfig(**PP2)),
    "tied-vpp2": (2, ParallelConfig(**PP2, **VPP2)),
    "tied-tp2": (2, ParallelConfig(**TP2)),
}
MASKS: tuple[DocumentMask, ...] = ("none", "block")
RUNS = [
    (layout, mask)
    for layout in LAYOUTS
    for mask in MASKS
    if mask == "block"
    or layout
    not in (
        *("cp2-balanced", "cp2-heads", "cp4-heads-ring"),
        *("cp2-vpp2", "tp2-vpp2-sp", "tied-vpp2"),
    )
]
COVERING: set[tuple[str, DocumentMask]] = {
    ("cp2", "block"),
    ("cp2-gather", "none"),
    ("cp2-balanced", "block"),
    ("cp2-heads", "block"),
    ("dp2", "block"),
    ("pp2-uneven", "none"),
    ("tp2-cp2-sp", "block"),
    ("cp2-vpp2", "block"),
    ("tied-pp2", "none"),
    ("tied-tp2", "block"),
}
"""Runs of the default tests: every kind of parallelism, mask, recomputation; offloading."""


def run_config(
    inputs: Path, layout: str, mask: DocumentMask, save: Path | None = None
) -> PretrainConfig:
    # Every kind of recomputation, on layouts of every kind.
    recompute: RecomputeGranularity = "none" if "one" in layout else "keep_attention"
    if layout in ("tp2", "cp2-gather", "tp2-cp2"):
        recompute = "full"
    return PretrainConfig(
        load=str(inputs / ("tied" if layout.startswith("tied") else "untied")),
        save=str(save or ""),
        train_iters=STEPS,
        global_batch_size=_rows(layout),
        precision="fp32",
        # One rank takes Megatron's own layers and loss; all others ours, in tiles that nothing
        # divides.
        memory=MemoryConfig(
            recompute_granularity=recompute,
            sequence_tile_size=72,
            loss_tile_size=0 if "one" in layout else 80,
            offload_activations=layout in ("tp2-cp2-sp", "cp2-pp2", "cp2-vpp2"),
        ),
        rope=RopeConfig(
            rope_scaling="yarn", rope_scaling_factor=4.0, original_max_position_embeddings=64
        ),
        parallel=LAYOUTS[layout][1],
        data=DataConfig(str(inputs / "rows"), document_mask=mask),
        optimizer=OptimizerConfig(lr=1e-3, lr_warmup_iters=0),
    )


def _rows(layout: str) -> int:
    """Two a step: the second one's gradients are added. Four where ranks or stages share them."""
    shares = "dp2" in layout or "pp2" in layout or layout == "one-rows"
    return 4 if shares and not layout.startswith("tied") else 2


def train_all(
    inputs: Path, runs: list[tuple[str, DocumentMask]]
) -> dict[tuple[str, DocumentMask], list[IterationRecord]]:
    """Run on every rank: all these layouts and masks."""
    return {(layout, mask): pretrain(run_config(inputs, layout, mask)) for layout, mask in runs}


Logs = dict[tuple[str, DocumentMask], list[IterationRecord]]


def reference(layout: str) -> str:
    """The layout of one rank that trains the same model on the same rows."""
    if layout.startswith("tied"):
        return "tied-one"
    return "one" if _rows(layout) == _rows("one") else "one-rows"


def cases(ranks: int) -> list[Any]:
    """Layouts and masks of so many ranks, those beyond the covering set marked as slow."""
    return [
        pytest.param(*run, marks=() if run in COVERING else pytest.mark.slow)
        for run in RUNS
        if LAYOUTS[run[0]][0] == ranks
    ]


def check_like_one_rank(logs: Logs, layout: str, mask: DocumentMask) -> None:
    """Every iteration has the loss and the gradient norm of one rank."""
    expected, actual = logs[reference(layout), mask], logs[layout, mask]
    assert len(actual) == STEPS
    for figure in ("lm_loss", "grad_norm"):
        # float32 sums in another order; steps of Adam must not let the difference grow.
        assert [getattr(record, figure) for record in actual] == pytest.approx(
            [getattr(record, figure) for record in expected], rel=1e-5
        )
