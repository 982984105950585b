"""The same checkpoint and batch give the same losses on every parallel layout."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.convert import ImportConfig, import_checkpoint
from megatron_ultralong.config import (
    DataConfig,
    OptimizerConfig,
    ParallelConfig,
    PretrainConfig,
    RopeConfig,
)
from megatron_ultralong.data.prepare import PrepareConfig, prepare
from megatron_ultralong.data.sampling import LengthSampling
from megatron_ultralong.documents import DocumentMask
from megatron_ultralong.training.log import IterationRecord
from megatron_ultralong.training.pretrain import pretrain
from tests.models import TEXT, write_llama
from tests.ranks import run_on_ranks

STEPS = 5
SEQ_LENGTH = 256
LAYOUTS = {  # name: (TP, CP, DP, PP, sequence parallel); tied: the embedding is the output layer
    "tp1": (1, 1, 1, 1, False),
    "cp2": (1, 2, 1, 1, False),
    "tp2": (2, 1, 1, 1, False),
    "dp2": (1, 1, 2, 1, False),
    "pp2": (1, 1, 1, 2, False),
    "tp2-sp": (2, 1, 1, 1, True),
    "tp2-cp2": (2, 2, 1, 1, False),
    "tp2-cp2-sp": (2, 2, 1, 1, True),
    "cp2-pp2": (1, 2, 1, 2, False),
    "tied-tp1": (1, 1, 1, 1, False),
    "tied-pp2": (1, 1, 1, 2, False),
    "tied-tp2": (2, 1, 1, 1, False),
}
MASKS: tuple[DocumentMask, ...] = ("none", "block")


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
    tp, cp, _, pp, sequence_parallel = LAYOUTS[layout]
    return PretrainConfig(
        load=str(inputs / ("tied" if layout.startswith("tied") else "untied")),
        save=str(save or ""),
        train_iters=STEPS,
        global_batch_size=4,
        precision="fp32",
        recompute_granularity="none" if layout.endswith("tp1") else "full",
        rope=RopeConfig(rope_scaling_factor=4.0, original_max_position_embeddings=64),
        parallel=ParallelConfig(tp, pp, cp, sequence_parallel),
        data=DataConfig(str(inputs / "rows"), document_mask=mask),
        optimizer=OptimizerConfig(lr=1e-3, lr_warmup_iters=2),
    )


def train_all(inputs: Path, layouts: list[str]) -> dict[str, list[IterationRecord]]:
    """Run on every rank: all these layouts, with both masks."""
    return {
        f"{layout}-{mask}": pretrain(run_config(inputs, layout, mask))
        for layout in layouts
        for mask in MASKS
    }


@pytest.fixture(scope="module")
def logs(inputs: Path) -> dict[str, list[IterationRecord]]:
    """Records of every layout and mask, the same on every rank."""
    sizes = {name: tp * cp * dp * pp for name, (tp, cp, dp, pp, _) in LAYOUTS.items()}
    logs: dict[str, list[IterationRecord]] = {}
    for ranks in (1, 2, 4):
        layouts = [name for name, size in sizes.items() if size == ranks]
        results = run_on_ranks(ranks, train_all, inputs, layouts)
        for name, records in results[0].items():
            losses = [record.lm_loss for record in records]
            assert all([r.lm_loss for r in other[name]] == losses for other in results)
            logs[name] = records
    return logs


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not name.endswith("tp1")])
def test_losses_and_gradient_norms_are_those_of_one_rank(
    logs: dict[str, list[IterationRecord]], layout: str, mask: str
) -> None:
    one_rank = "tied-tp1" if layout.startswith("tied") else "tp1"
    reference, ours = logs[f"{one_rank}-{mask}"], logs[f"{layout}-{mask}"]
    assert len(ours) == STEPS
    for figure in ("lm_loss", "grad_norm"):
        # float32 sums in another order; five steps of Adam must not let the difference grow.
        assert [getattr(record, figure) for record in ours] == pytest.approx(
            [getattr(record, figure) for record in reference], rel=1e-5
        )


def test_the_masks_differ_and_the_loss_falls(logs: dict[str, list[IterationRecord]]) -> None:
    none, block = (logs[f"tp1-{mask}"] for mask in MASKS)
    assert abs(none[0].lm_loss - block[0].lm_loss) > 1e-3
    for log in (none, block):
        assert log[-1].lm_loss < log[0].lm_loss - 0.1


def resume(inputs: Path) -> None:
    """Run on every rank: three iterations, then the rest from the checkpoint."""
    config = run_config(inputs, "cp2", "block", inputs / "resumed")
    pretrain(dataclasses.replace(config, train_iters=3))
    pretrain(config)


def test_a_resumed_run_repeats_the_uninterrupted_one(
    inputs: Path, logs: dict[str, list[IterationRecord]]
) -> None:
    run_on_ranks(2, resume, inputs)
    lines = (inputs / "resumed" / "log.jsonl").read_text().splitlines()
    resumed = [json.loads(line) for line in lines]
    for figure in ("iteration", "lm_loss", "grad_norm", "learning_rate"):
        assert [record[figure] for record in resumed] == [
            getattr(record, figure) for record in logs["cp2-block"]
        ]
