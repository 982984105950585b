"""Pipelines whose ranks hold several chunks of the model, taken in turns."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.disk.folder import write_latest
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.run import MemoryConfig
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.evaluation.loss import measure_position_loss
from megatron_ultralong.evaluation.models.language_models import open_scorers
from megatron_ultralong.evaluation.options import LossConfig, ModelsConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.training.telling.log import IterationRecord
from megatron_ultralong.training.verbs import check_run, pretrain
from tests.ranks import run_on_ranks
from tests.training.conftest import MakeConfig
from tests.training.job import Job
from tests.training.test_faults import poison

SAVED, STEPS = 2, 4
CHUNKS = ParallelConfig(pipeline_model_parallel_size=2, num_virtual_stages_per_pipeline_rank=2)
LAYOUTS = {  # of two ranks
    "whole": CHUNKS,
    "again": CHUNKS,
    "pipeline": ParallelConfig(pipeline_model_parallel_size=2),
    "context": ParallelConfig(context_parallel_size=2),
}
Configs = dict[str, PretrainConfig]
Records = dict[str, list[IterationRecord]]


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Configs:
    """One uninterrupted run in chunks, and runs to be resumed from a checkpoint of it."""
    folder = tmp_path_factory.mktemp("chunks")
    return {
        name: dataclasses.replace(
            make_config(
                folder / name,
                mask="block",
                train_iters=STEPS,
                save_interval=SAVED,
                model="deep",
            ),
            global_batch_size=4,
            eval_interval=STEPS,
            eval_iters=1,
            parallel=parallel,
            memory=MemoryConfig(sequence_tile_size=48, loss_tile_size=40, offload_activations=True),
        )
        for name, parallel in LAYOUTS.items()
    }


def train_each(configs: list[PretrainConfig]) -> list[list[IterationRecord]]:
    """Run on every rank: one run after another."""
    return [pretrain(config) for config in configs]


@pytest.fixture(scope="module")
def records(configs: Configs) -> Records:
    """What each of the runs has logged."""
    whole, *others = configs
    found = {whole: run_on_ranks(2, train_each, [configs[whole]])[0][0]}
    for name in others:
        shutil.copytree(configs[whole].save, configs[name].save)
        write_latest(Path(configs[name].save), SAVED)
    results = run_on_ranks(2, train_each, [configs[name] for name in others])[0]
    return {**found, **dict(zip(others, results, strict=True))}


def figures(records: list[IterationRecord]) -> list[float]:
    """Losses and gradient norms, in turns, then the validation loss."""
    losses = [value for record in records for value in (record.lm_loss, record.grad_norm)]
    assert records[-1].validation_loss is not None
    return [*losses, records[-1].validation_loss]


def test_a_resumed_run_repeats_the_uninterrupted_one(records: Records) -> None:
    assert len(records["whole"]) == STEPS
    assert figures(records["again"]) == figures(records["whole"][SAVED:])


@pytest.mark.parametrize("name", list(LAYOUTS)[2:])
def test_other_layouts_read_its_checkpoints(records: Records, name: str) -> None:
    # float32 sums in another order.
    assert figures(records[name]) == pytest.approx(figures(records["whole"][SAVED:]), rel=1e-5)


def score(root: str, data: str, parallel: ParallelConfig) -> float:
    """Run on every rank: the evaluation's loss at the end of four held-out rows."""
    models = ModelsConfig(load=(root,), precision="fp32", parallel=parallel)
    with open_scorers(models) as scorers:
        config = LossConfig(data_path=data, num_samples=4)
        cells = measure_position_loss(config, list(scorers))[0].cells
    return cells[-1].score


def test_evaluations_read_its_checkpoints_in_plain_stages(configs: Configs) -> None:
    config = configs["whole"]
    data = config.data.data_path
    one, staged = (
        run_on_ranks(ranks, score, config.save, data, parallel)[0]
        for ranks, parallel in ((1, ParallelConfig()), (2, LAYOUTS["pipeline"]))
    )
    assert staged == pytest.approx(one, rel=1e-5)  # float32 sums in another order
    with (
        pytest.raises(InputError, match=r"leave --num-virtual-stages-per-pipeline-rank out"),
        open_scorers(ModelsConfig(load=(config.save,), parallel=CHUNKS)),
    ):
        pass


def test_a_bad_row_is_named(configs: Configs, tmp_path: Path) -> None:
    config = dataclasses.replace(configs["whole"], save=str(tmp_path / "run"), eval_interval=0)
    with Job(
        config, 2, functools.partial(poison, frozenset((5,)))
    ) as job:  # the second step's second row
        assert job.wait() == [65, 65]
        said = job.text(0)
    name = check_run(config, 2).train_rows.name(5)
    assert f"iteration 2: the loss is nan; loss not finite on rank 1 (rows {name})" in said
