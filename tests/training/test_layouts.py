"""The same checkpoint and batch give the same losses on every parallel layout."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.attention.ring import function
from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.run import MemoryConfig, RecomputeGranularity
from megatron_ultralong.config.training import DataConfig, PretrainConfig
from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.pack.sampling import LengthSampling
from megatron_ultralong.data.prepare.documents import prepare
from megatron_ultralong.sequence.documents import DocumentMask
from megatron_ultralong.training.telling.log import IterationRecord
from megatron_ultralong.training.verbs import pretrain
from tests.models import TEXT, write_llama
from tests.patience import patience
from tests.ranks import run_on_ranks

# All layouts train in one fixture, which takes minutes where ranks share cores with other tests.
pytestmark = pytest.mark.timeout(patience(800))
STEPS = 5
SEQ_LENGTH = 256
TP2, CP2, PP2 = (
    {f"{kind}_parallel_size": 2} for kind in ("tensor_model", "context", "pipeline_model")
)
VPP2: dict[str, Any] = {"num_virtual_stages_per_pipeline_rank": 2}
SP: dict[str, Any] = {"sequence_parallel": True}
LAYOUTS: dict[str, tuple[int, ParallelConfig]] = {  # name: (ranks, layout)
    "one": (1, ParallelConfig()),
    "cp2": (2, ParallelConfig(**CP2)),
    "cp2-gather": (2, ParallelConfig(**CP2, cp_comm_type="all_gather")),
    "cp2-balanced": (2, ParallelConfig(**CP2, cp_assignment="balanced")),
    "tp2": (2, ParallelConfig(**TP2)),
    "dp2": (2, ParallelConfig()),
    "pp2": (2, ParallelConfig(**PP2)),
    "tp2-sp": (2, ParallelConfig(**TP2, **SP)),
    "tp2-cp2": (4, ParallelConfig(**TP2, **CP2)),
    "tp2-cp2-sp": (4, ParallelConfig(**TP2, **CP2, **SP)),
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
    if mask == "block" or layout not in ("cp2-balanced", "cp2-vpp2", "tp2-vpp2-sp", "tied-vpp2")
]
COVERING: set[tuple[str, DocumentMask]] = {
    ("cp2", "block"),
    ("cp2-gather", "none"),
    ("cp2-balanced", "block"),
    ("dp2", "block"),
    ("pp2-uneven", "none"),
    ("tp2-cp2-sp", "block"),
    ("cp2-vpp2", "block"),
    ("tied-pp2", "none"),
    ("tied-tp2", "block"),
}
"""Runs of the default tests: every kind of parallelism, mask, recomputation; offloading."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model, and rows of several short documents each."""
    folder = tmp_path_factory.mktemp("layouts")
    for name, tied in (("untied", False), ("tied", True)):
        write_llama(folder / f"hf-{name}", tie_word_embeddings=tied)
        import_checkpoint(ImportConfig(folder / f"hf-{name}", folder / name))
    lines = [json.dumps({"text": TEXT * (1 + n % 7) + str(n)}) for n in range(300)]
    (folder / "documents.jsonl").write_text("\n".join(lines))
    prepare(
        PrepareConfig(
            source=(f"code={folder / 'documents.jsonl'}",),
            tokenizer=folder / "hf-tied",
            output=folder / "rows",
            seq_length=SEQ_LENGTH,
            sampling=LengthSampling("none"),
        )
    )
    return folder


def run_config(
    inputs: Path, layout: str, mask: DocumentMask, save: Path | None = None
) -> PretrainConfig:
    # Every kind of recomputation, on layouts of every kind.
    recompute: RecomputeGranularity = "none" if layout.endswith("one") else "keep_attention"
    if layout in ("tp2", "cp2-gather", "tp2-cp2"):
        recompute = "full"
    return PretrainConfig(
        load=str(inputs / ("tied" if layout.startswith("tied") else "untied")),
        save=str(save or ""),
        train_iters=STEPS,
        global_batch_size=4,
        precision="fp32",
        # One rank takes Megatron's own layers and loss; all others ours, in tiles that nothing
        # divides.
        memory=MemoryConfig(
            recompute_granularity=recompute,
            # Fewer where four ranks wait for each other on two cores.
            sequence_tile_size=40 if LAYOUTS[layout][0] < 4 else 72,
            loss_tile_size=0 if layout.endswith("one") else 48 if LAYOUTS[layout][0] < 4 else 80,
            offload_activations=layout in ("tp2-cp2-sp", "cp2-pp2", "cp2-vpp2"),
        ),
        rope=RopeConfig(
            rope_scaling="yarn", rope_scaling_factor=4.0, original_max_position_embeddings=64
        ),
        parallel=LAYOUTS[layout][1],
        data=DataConfig(str(inputs / "rows"), document_mask=mask),
        optimizer=OptimizerConfig(lr=1e-3, lr_warmup_iters=2),
    )


def train_all(
    inputs: Path, runs: list[tuple[str, DocumentMask]]
) -> dict[tuple[str, DocumentMask], list[IterationRecord]]:
    """Run on every rank: all these layouts and masks."""
    return {(layout, mask): pretrain(run_config(inputs, layout, mask)) for layout, mask in runs}


Logs = dict[tuple[str, DocumentMask], list[IterationRecord]]


@pytest.fixture(scope="module")
def logs(inputs: Path, request: pytest.FixtureRequest) -> Logs:
    """Records of the layouts and masks that tests ask for, the same on every rank."""
    asked: set[Any] = {("cp2", "block")} | {
        (item.callspec.params["layout"], item.callspec.params["mask"])
        for item in request.session.items
        if item.path == request.path
        and isinstance(item, pytest.Function)
        and hasattr(item, "callspec")
    }
    logs: Logs = {}
    for ranks in (1, 2, 4):
        runs = [run for run in RUNS if LAYOUTS[run[0]][0] == ranks]
        if ranks > 1:
            runs = [run for run in runs if run in asked]
        if not runs:
            continue
        results = run_on_ranks(ranks, train_all, inputs, runs)
        for run, records in results[0].items():
            losses = [record.lm_loss for record in records]
            assert all([r.lm_loss for r in other[run]] == losses for other in results)
            logs[run] = records
    return logs


@pytest.mark.parametrize(
    ("layout", "mask"),
    [
        pytest.param(*run, marks=() if run in COVERING else pytest.mark.slow)
        for run in RUNS
        if LAYOUTS[run[0]][0] > 1
    ],
)
def test_losses_and_gradient_norms_are_those_of_one_rank(
    logs: Logs, layout: str, mask: DocumentMask
) -> None:
    one_rank = "tied-one" if layout.startswith("tied") else "one"
    reference, ours = logs[one_rank, mask], logs[layout, mask]
    assert len(ours) == STEPS
    for figure in ("lm_loss", "grad_norm"):
        # float32 sums in another order; five steps of Adam must not let the difference grow.
        assert [getattr(record, figure) for record in ours] == pytest.approx(
            [getattr(record, figure) for record in reference], rel=1e-5
        )


def test_the_masks_differ_and_the_loss_falls(logs: Logs) -> None:
    none, block = logs["one", "none"], logs["one", "block"]
    assert abs(none[0].lm_loss - block[0].lm_loss) > 1e-3
    for log in (none, block):
        assert log[-1].lm_loss < log[0].lm_loss - 0.1


def count_attention(inputs: Path, recomputes: list[RecomputeGranularity]) -> list[int]:
    """Forward passes of attention in three iterations, by kind of recomputation."""
    return [_count_attention(inputs, recompute) for recompute in recomputes]


def _count_attention(inputs: Path, recompute: RecomputeGranularity) -> int:
    config = dataclasses.replace(run_config(inputs, "one", "none"), train_iters=3)
    passes = 0
    forward = function._forward

    def counting(*args: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(*args)

    function._forward = counting
    try:
        memory = dataclasses.replace(config.memory, recompute_granularity=recompute)
        pretrain(dataclasses.replace(config, memory=memory))
    finally:
        function._forward = forward
    return passes


def test_attention_that_is_kept_is_not_computed_again(inputs: Path) -> None:
    passes = 3 * 4 * 4  # iterations, rows, layers
    kinds: list[RecomputeGranularity] = ["none", "keep_attention", "full"]
    assert run_on_ranks(1, count_attention, inputs, kinds) == [[passes, passes, 2 * passes]]


def train_bf16(inputs: Path) -> list[IterationRecord]:
    """Run on every rank: as `cp2`, with bf16 weights and activations."""
    return pretrain(dataclasses.replace(run_config(inputs, "cp2", "block"), precision="bf16"))


def test_bf16_follows_float32(inputs: Path, logs: Logs) -> None:
    ours = run_on_ranks(2, train_bf16, inputs)[0]
    theirs = logs["one", "block"]
    # bf16 has 8 bits: a relative error of 2^-8 a rounding, averaged over a thousand tokens. Later
    # the weights are rounded after updates of their own size; a wrong scale would be far beyond.
    assert ours[0].lm_loss == pytest.approx(theirs[0].lm_loss, rel=2**-8)
    for ours_later, theirs_later in zip(ours, theirs, strict=True):
        assert ours_later.lm_loss == pytest.approx(theirs_later.lm_loss, rel=0.03)
        assert ours_later.grad_norm == pytest.approx(theirs_later.grad_norm, rel=0.1)


def resume(inputs: Path) -> None:
    """Run on every rank: three iterations, then the rest from the checkpoint."""
    config = run_config(inputs, "cp2", "block", inputs / "resumed")
    pretrain(dataclasses.replace(config, train_iters=3))
    pretrain(config)


def test_a_resumed_run_repeats_the_uninterrupted_one(inputs: Path, logs: Logs) -> None:
    run_on_ranks(2, resume, inputs)
    lines = (inputs / "resumed" / "log.jsonl").read_text().splitlines()
    resumed = [json.loads(line) for line in lines]
    for figure in ("iteration", "lm_loss", "grad_norm", "learning_rate"):
        assert [record[figure] for record in resumed] == [
            getattr(record, figure) for record in logs["cp2", "block"]
        ]
