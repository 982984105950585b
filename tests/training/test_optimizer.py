"""Adam's states in host memory, and which Adam a run has."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.disk.folder import write_latest
from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.training.optimizer import adam_name
from megatron_ultralong.training.telling.log import IterationRecord
from megatron_ultralong.training.verbs import check_run, pretrain
from tests.ranks import run_on_ranks
from tests.training.conftest import MakeConfig
from tests.training.job import Job

SAVED, STEPS = 2, 4
FRACTIONS = {"device": 0.0, "half": 0.5, "host": 1.0}
NAMES = ["half", pytest.param("host", marks=pytest.mark.slow)]
Records = dict[str, list[IterationRecord]]


def train_each(configs: list[PretrainConfig]) -> list[list[IterationRecord]]:
    """Run on every rank: one run after another."""
    return [pretrain(config) for config in configs]


def offloaded(config: PretrainConfig, fraction: float) -> PretrainConfig:
    """``config`` in bf16, with so much of its optimizer on the host."""
    optimizer = dataclasses.replace(
        config.optimizer,
        optimizer_cpu_offload=fraction > 0,
        optimizer_offload_fraction=fraction or 1.0,
    )
    return dataclasses.replace(config, precision="bf16", optimizer=optimizer)


@pytest.fixture(scope="module")
def records(
    tmp_path_factory: pytest.TempPathFactory,
    make_config: MakeConfig,
    request: pytest.FixtureRequest,
) -> Records:
    """Runs with none, half and, where a test asks for it, all of the states on the host.

    Each is there whole and resumed.
    """
    folder = tmp_path_factory.mktemp("optimizer")
    asked = {"device"} | {
        item.callspec.params["name"]
        for item in request.session.items
        if item.path == request.path and "name" in getattr(item, "fixturenames", ())
    }
    found: Records = {}
    for resumed in ("", "-resumed"):
        configs = {
            f"{name}{resumed}": offloaded(
                make_config(
                    folder / f"{name}{resumed}", (1, 2), train_iters=STEPS, save_interval=SAVED
                ),
                fraction,
            )
            for name, fraction in FRACTIONS.items()
            if name in asked
        }
        for name, config in configs.items():
            if resumed:
                shutil.copytree(folder / name.removesuffix(resumed), config.save)
                write_latest(Path(config.save), SAVED)
        results = run_on_ranks(2, train_each, list(configs.values()))[0]
        found.update(zip(configs, results, strict=True))
    return found


def figures(records: list[IterationRecord]) -> list[tuple[float, float]]:
    return [(record.lm_loss, record.grad_norm) for record in records]


@pytest.mark.parametrize("name", NAMES)
def test_states_on_the_host_make_the_same_steps(records: Records, name: str) -> None:
    assert len(records[name]) == STEPS
    assert figures(records[name]) == figures(records["device"])


@pytest.mark.parametrize("name", ["device", *NAMES])
def test_a_resumed_run_repeats_the_uninterrupted_one(records: Records, name: str) -> None:
    assert figures(records[f"{name}-resumed"]) == figures(records[name][SAVED:])


def test_a_resumed_run_takes_the_new_rate_and_says_so(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(tmp_path / "run", (1, 2), train_iters=4, save_interval=0)
    with Job(config, 2) as job:
        assert job.wait() == [0, 0], job.text(0)
        assert f"optimizer: {adam_name()}, states spread over 2 ranks" in job.text(0)
    optimizer = dataclasses.replace(config.optimizer, lr=2e-3, weight_decay=0.5)
    changed = dataclasses.replace(config, train_iters=6, optimizer=optimizer)
    with Job(changed, 2) as job:
        assert job.wait() == [0, 0], job.text(0)
        said = job.text(0)
    assert said.count("learning rate: 2.000E-03") == 2
    assert "changed since the start before: optimizer.lr was 0.001, is 0.002" in said
    assert "changed since the start before: optimizer.weight_decay was 0.1, is 0.5" in said
    assert "changed since the start before: save " not in said


@pytest.mark.parametrize(
    ("fields", "precision", "message"),
    [
        ({"optimizer_cpu_offload": True}, "fp32", "optimizer_cpu_offload needs precision 'bf16'"),
        ({"exp_avg_dtype": "bf16"}, "bf16", "exp_avg_dtype 'bf16' needs use_precision_aware"),
        (
            {"optimizer_cpu_offload": True, "use_precision_aware_optimizer": True},
            "bf16",
            "exclude each other",
        ),
        (
            {"optimizer_cpu_offload": True, "optimizer_offload_fraction": 0.0},
            "bf16",
            r"optimizer_offload_fraction must be above 0 and at most 1, not 0.0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    fields: dict[str, object], precision: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        OptimizerConfig(**fields).check(precision)  # type: ignore[arg-type]


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is not None, reason="it is there"
)
def test_without_transformer_engine_its_optimizer_is_refused_before_the_start(
    make_config: MakeConfig,
) -> None:
    config = make_config(None)
    optimizer = OptimizerConfig(use_precision_aware_optimizer=True, exp_avg_dtype="fp8")
    config = dataclasses.replace(config, precision="bf16", optimizer=optimizer)
    with pytest.raises(InputError, match=r"Megatron-Core found AdamW of torch .*: install transf"):
        check_run(config, 1)
