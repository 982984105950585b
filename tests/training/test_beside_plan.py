"""A run is held against its plan, once, where the plan knows what it runs on."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_ultralong.model.flops import PEAK_TFLOPS
from megatron_ultralong.plan.estimate import Estimate
from megatron_ultralong.plan.hardware import HARDWARE, Hardware, hardware_in_use
from megatron_ultralong.plan.job import Job
from megatron_ultralong.training import loop
from megatron_ultralong.training.telling.beside_plan import ADVICE, MEASURED, BesidePlan
from megatron_ultralong.training.verbs import pretrain
from tests.plan.test_gpu_figures import SLOWED, job
from tests.training.conftest import MakeConfig
from tests.training.test_telling import figures

H200 = HARDWARE["h200-141gb-fa4"]


def notes(its: Job, seconds: list[float], hardware: Hardware | None = H200) -> list[str | None]:
    """What is told after each iteration of that length; its rows are one document each."""
    beside = BesidePlan(its.config, its.model, its.num_gpus, hardware)
    records = [dataclasses.replace(figures(1), elapsed_ms=1000 * each) for each in seconds]
    return [beside.note(record, its.mean_area * its.config.global_batch_size) for record in records]


def test_a_step_that_is_longer_than_planned_is_told_with_where_to_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The 8B on four H200, one of them slowed for heat (benchmarks/training.md)."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    planned = Estimate(SLOWED, H200).time.total
    told = notes(SLOWED, [62.6, 38.2, 38.7, 38.7, 38.7])
    assert told[:MEASURED] == [None] * MEASURED
    note = told[MEASURED]
    assert note is not None
    first, advice = note.split("\n")
    assert first.startswith(f"beside the plan: a step takes 38.7 s, planned {planned:.1f} (+20%);")
    assert advice == ADVICE
    assert told[MEASURED + 1 :] == [None]


def test_a_step_as_planned_is_told_without_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    seconds = Estimate(SLOWED, H200).time.total * 1.08
    (note,) = filter(None, notes(SLOWED, [90.0, seconds, 3 * seconds, seconds]))
    assert "(+8%)" in note
    assert "\n" not in note


def test_saves_are_no_part_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    beside = BesidePlan(SLOWED.config, SLOWED.model, SLOWED.num_gpus, H200)
    saved = dataclasses.replace(figures(1), elapsed_ms=132_400.0, phases_ms={"checkpoint": 100e3})
    area = SLOWED.mean_area * SLOWED.config.global_batch_size
    (note,) = filter(None, (beside.note(saved, area) for _ in range(MEASURED + 1)))
    assert "a step takes 32.4 s, planned 32.4 (+0%)" in note


def test_nothing_is_told_of_what_is_not_planned() -> None:
    masked = dataclasses.replace(SLOWED.config.data, document_mask="block")
    shared = dataclasses.replace(SLOWED, config=dataclasses.replace(SLOWED.config, data=masked))
    short = job(2**13, 2, 2, 4, layers=1)
    for its, hardware in ((SLOWED, None), (shared, H200), (short, H200)):
        assert notes(its, [50.0] * 6, hardware) == [None] * 6


def test_a_plan_that_fails_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of something")

    monkeypatch.setattr("megatron_ultralong.plan.estimate.step_time", fail)
    assert notes(SLOWED, [2.0] * 4)[-1] == (
        "beside the plan: a step takes 2.0 s; no plan of it: of something"
    )


@pytest.mark.parametrize("device", PEAK_TFLOPS)
def test_the_entry_is_of_the_device_and_its_kernel(device: str) -> None:
    for kernel in ("fa4", "fa3", "fa2", "cudnn", "cpu", "math"):
        found = hardware_in_use(f"NVIDIA {device} 80GB", kernel)
        if found is not None:
            assert found.attention_kernel == kernel
            assert found.peak_tflops == PEAK_TFLOPS[device]
    assert hardware_in_use("", "cpu") is None


def test_a_run_tells_it_between_its_iterations(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = dataclasses.replace(H200, matmul_tflops=1e-5)  # as if each step took seconds
    monkeypatch.setattr(loop, "hardware_in_use", lambda device, kernel: slow)
    pretrain(make_config(None, train_iters=MEASURED + 3))
    lines = capsys.readouterr().out.splitlines()
    (told,) = (line for line in lines if line.startswith("beside the plan: a step takes 0."))
    assert any(f"iteration {MEASURED + 1}/" in line for line in lines[: lines.index(told)])
    assert not any(f"iteration {MEASURED + 2}/" in line for line in lines[: lines.index(told)])
