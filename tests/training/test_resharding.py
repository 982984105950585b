"""A checkpoint of a run is read at other parallel sizes than it was written with."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.disk.folder import write_latest
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.training.telling.log import IterationRecord
from megatron_ultralong.training.verbs import pretrain
from tests.ranks import run_on_ranks
from tests.training.conftest import MakeConfig

SAVED, STEPS = 3, 5
LAYOUTS = {  # name: (ranks, tensor, context, pipeline); data parallel are the ranks that are left
    "one": (1, 1, 1, 1),
    "cp2-dp2": (4, 1, 2, 1),
    "tp4": (4, 4, 1, 1),
    "cp2-pp2": (4, 1, 2, 2),
}


def train_each(configs: list[PretrainConfig]) -> list[list[IterationRecord]]:
    """Run on every rank: one run after another."""
    return [pretrain(config) for config in configs]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    """A run of five iterations at TP 2, CP 2 on four ranks, with a checkpoint at the third."""
    root = tmp_path_factory.mktemp("written") / "run"
    run_on_ranks(4, train_each, [make_config(root, (2, 2), "block", train_iters=STEPS)])
    return root


def figures(records: list[IterationRecord]) -> list[float]:
    """Losses and gradient norms, in turns."""
    return [value for record in records for value in (record.lm_loss, record.grad_norm)]


@pytest.mark.parametrize("first", ["bf16", "fp32"])
def test_the_other_precision_resumes(tmp_path: Path, make_config: MakeConfig, first: str) -> None:
    """Ranks share the weights of one optimizer: of float32 ones each has a part."""
    runs: list[PretrainConfig] = []
    for context in (1, 2):
        layout, folders = (1, context), (tmp_path / f"whole{context}", tmp_path / f"parts{context}")
        made = [make_config(folder, layout, "block", train_iters=STEPS) for folder in folders]
        whole, config = (dataclasses.replace(one, precision=first) for one in made)
        other = {"bf16": "fp32", "fp32": "bf16"}[first]
        saved = dataclasses.replace(config, train_iters=SAVED)
        runs += [whole, saved, dataclasses.replace(config, precision=other)]
    records = run_on_ranks(2, train_each, runs)[0]
    for expected, resumed in zip(records[::3], records[2::3], strict=True):
        assert [record.iteration for record in resumed] == [4, 5]
        # bf16 rounds to 2^-9, weights and layers' results
        assert figures(resumed) == pytest.approx(figures(expected[SAVED:]), rel=0.03)


@pytest.mark.slow
def test_other_layouts_go_on_alike(written: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    configs: dict[str, PretrainConfig] = {}
    for name, (_, tensor, context, pipeline) in {"same": (4, 2, 2, 1), **LAYOUTS}.items():
        root = tmp_path / name
        shutil.copytree(written, root)
        write_latest(root, SAVED)
        config = make_config(root, (tensor, context), "block", train_iters=STEPS)
        parallel = dataclasses.replace(config.parallel, pipeline_model_parallel_size=pipeline)
        configs[name] = dataclasses.replace(config, parallel=parallel)
    alone = run_on_ranks(1, train_each, [configs["one"]])[0]
    names = [name for name in configs if name != "one"]
    records = dict(
        zip(names, run_on_ranks(4, train_each, [configs[name] for name in names])[0], strict=True)
    )
    records["one"] = alone[0]
    expected = records.pop("same")
    assert [record.iteration for record in expected] == [4, 5]
    for name, found in records.items():
        assert [record.iteration for record in found] == [4, 5]
        # float32 sums in another order; measured: at most 2e-7.
        assert figures(found) == pytest.approx(figures(expected), rel=1e-5), name
