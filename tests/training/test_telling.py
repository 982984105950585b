"""What a run tells: its lines, JSON, TensorBoard, Weights & Biases, validation, traces, summary."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import math
import os
import pty
import select
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_ultralong.config.run import LogConfig
from megatron_ultralong.config.training import DataConfig, PretrainConfig
from megatron_ultralong.evaluation.loss import measure_position_loss
from megatron_ultralong.evaluation.models.language_models import open_scorers
from megatron_ultralong.evaluation.options import LossConfig, ModelsConfig
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.model.flops import training_flops
from megatron_ultralong.plan.layer_memory import fp32_notes
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.progress import progress
from megatron_ultralong.sequence.documents import Row
from megatron_ultralong.training.inputs import check_attention
from megatron_ultralong.training.saving.checkpoint_writer import expired
from megatron_ultralong.training.step import LanguageModelStep, SpikeDetector
from megatron_ultralong.training.telling import log as run_log
from megatron_ultralong.training.telling.phases import PHASES, _tokens
from megatron_ultralong.training.verbs import check_run, dry_run
from tests.ranks import run_on_ranks
from tests.training.conftest import MakeConfig
from tests.training.job import Job

STEPS = 4


@pytest.fixture(scope="module")
def told(
    tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig
) -> tuple[Path, str, list[dict[str, Any]]]:
    """A run on two ranks that tells everything it can."""
    root = tmp_path_factory.mktemp("telling") / "run"
    config = make_config(root, (1, 2), train_iters=STEPS, save_interval=2)
    log = LogConfig(
        profile=True,
        profile_step_start=2,
        profile_step_end=4,
        profile_ranks=(1,),
        peak_tflops=0.001,
    )
    config = dataclasses.replace(config, eval_interval=2, eval_iters=3, log=log)
    with Job(config, 2) as job:
        assert job.wait() == [0, 0], job.text(0)
        said = job.text(0)
    lines = (root / "log.jsonl").read_text().splitlines()
    return root, said, [json.loads(line) for line in lines]


def test_the_first_lines_name_the_kernels(told: tuple[Path, str, list[dict[str, Any]]]) -> None:
    _, said, _ = told
    before, iteration, _ = said.partition("iteration 1/")
    assert iteration
    assert before.count("attention kernel cpu for torch.") == 1
    assert (
        before.count(
            "elementwise kernels torch, one operation at a time; not compiled: they are for a GPU, "
            "not for cpu\n"
        )
        == 1
    )


def test_a_line_an_iteration_and_a_summary(told: tuple[Path, str, list[dict[str, Any]]]) -> None:
    _, said, records = told
    lines = [line for line in said.splitlines() if " iteration " in line and " | " in line]
    assert len(lines) == STEPS
    for line, record in zip(lines, records, strict=True):
        for part in (
            f"iteration {record['iteration']}/{STEPS} |",
            f"time (ms): {record['elapsed_ms']:.1f}",
            f"MFU: {100 * record['mfu']:.1f} %",
            f"lm loss: {record['lm_loss']:.6f}",
            f"grad norm: {record['grad_norm']:.3f}",
        ):
            assert part in line
        assert len(line) <= 200, line
    assert "by position: <32:" in said
    assert all(len(line) <= 200 for line in said.splitlines() if "by position" in line)
    means = [sum(record["lm_loss"] for record in half) / 2 for half in (records[:2], records[2:])]
    means_text = "{:.4f} -> {:.4f} (means of the first and last 2 iterations)".format(*means)
    assert f"loss: {means_text}" in said
    assert f"done: iterations 1 to {STEPS} in" in said
    assert f"validation {records[-1]['validation_loss']:.4f}" in said
    assert "checkpoints: 2 written, 0 failed; the last is iteration 4" in said


def test_speed_counts_the_true_attention_area(
    told: tuple[Path, str, list[dict[str, Any]]], make_config: MakeConfig
) -> None:
    model = check_run(make_config(None), 1).source.model
    num_tokens, area = 2 * 128, 2 * 128 * 129 / 2
    for record in told[2]:
        seconds = record["elapsed_ms"] / 1000.0
        assert record["consumed_tokens"] == record["iteration"] * num_tokens
        tflops = training_flops(model, num_tokens, area).total / seconds / 2 / 1e12
        assert record["tflops_per_rank"] == pytest.approx(tflops)
        assert record["mfu"] == pytest.approx(tflops / 0.001)
        assert record["tokens_per_second_per_rank"] == pytest.approx(num_tokens / seconds / 2)


def test_phases_are_told_apart(told: tuple[Path, str, list[dict[str, Any]]]) -> None:
    for record in told[2]:
        phases = record["phases_ms"]
        assert set(phases) == set(PHASES)
        # Both are read at the same places, one after the other: another process may come between.
        assert sum(phases.values()) == pytest.approx(record["elapsed_ms"], rel=0.1, abs=20)
        for phase in ("data", "forward", "backward", "communication", "optimizer"):
            assert phases[phase] > 0
    # The checkpoint of iteration 2 is begun after its record, and counts in the next one.
    assert told[2][2]["phases_ms"]["checkpoint"] > told[2][1]["phases_ms"]["checkpoint"]


def test_tensorboard_has_the_same_figures(told: tuple[Path, str, list[dict[str, Any]]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(told[0] / "tensorboard"))
    events.Reload()
    for name, field in (("train/lm loss", "lm_loss"), ("speed/MFU", "mfu")):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [
            (record["iteration"], pytest.approx(record[field], rel=1e-6))  # stored as float32
            for record in told[2]
        ]
    assert [event.step for event in events.Scalars("validation/lm loss")] == [2, 4]
    assert "validation by position/0-32" in events.Tags()["scalars"]
    assert "time (ms)/optimizer" in events.Tags()["scalars"]


def test_a_trace_of_the_ranks_and_steps_asked_for(
    told: tuple[Path, str, list[dict[str, Any]]],
) -> None:
    (path,) = (told[0] / "profile").iterdir()
    assert path.name == "rank1-steps2-3.json.gz"
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = {event.get("name") for event in events}
    assert "aten::mm" in names


def score(root: Path, data: str) -> list[Result]:
    """Run on one rank: every held-out row, through the evaluation."""
    with open_scorers(ModelsConfig(load=(str(root),), precision="fp32")) as scorers:
        config = LossConfig(data_path=data, smallest_bin=32)
        return measure_position_loss(config, list(scorers))


def test_validation_is_what_the_evaluation_finds(
    told: tuple[Path, str, list[dict[str, Any]]], make_config: MakeConfig
) -> None:
    root, _, records = told
    assert [record["validation_loss"] is None for record in records] == [True, False] * 2
    data = make_config(None).data.data_path
    found = run_on_ranks(1, score, root, data)[0][0]
    actual = {
        (part["start"], part["stop"]): part["lm_loss"] for part in records[-1]["validation_bins"]
    }
    assert list(actual) == [(0, 32), (32, 64), (64, 128)]
    reference = {place: cell.score for place in found.bins if (cell := found.loss(place))}
    assert actual == pytest.approx(reference, rel=1e-5)  # float32 sums over other splits


def show_on(terminal: str, rank: int) -> None:
    """Run on every rank before the job: its standard error is a terminal."""
    os.environ.update(TERM="xterm", COLUMNS="120")
    os.dup2(os.open(terminal, os.O_WRONLY | os.O_NOCTTY), 2)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)


def test_a_bar_on_a_terminal(make_config: MakeConfig) -> None:
    terminal, end = pty.openpty()
    shown = b""
    prepare = functools.partial(show_on, os.ttyname(end))
    with Job(make_config(None, train_iters=6), 1, prepare) as job:
        can_read = lambda seconds: select.select([terminal], [], [], seconds)[0]  # noqa: E731
        while can_read(0.05) or job.ranks[0].is_alive():
            shown += os.read(terminal, 65536) if can_read(0.0) else b""
        assert job.wait() == [0], shown
        lines = job.text(0)
    os.close(end)
    os.close(terminal)
    assert lines.count("] iteration ") == 6  # to standard output, though the bar is drawn
    assert "done: iterations 1 to 6" in lines
    for part in ("training", "100%", "ETA", "/6 iterations", "loss ", " tokens/s"):
        assert part in shown.decode()


def test_weights_and_biases_go_on_with_a_run(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    root = tmp_path / "run"
    config = make_config(root, save_interval=0)
    config = dataclasses.replace(config, log=LogConfig(tensorboard=False, wandb_project="tiny"))
    for train_iters in (3, 4):
        with Job(dataclasses.replace(config, train_iters=train_iters), 2) as job:
            assert job.wait() == [0, 0], job.text(0)
    written = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(written) == 2
    assert len({path.name for path in written}) == 1  # one identity, that of this folder
    assert b"train/lm loss" in written[1].read_bytes()


def test_weights_and_biases_that_take_no_records_have_one_message(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))  # no key
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    config = make_config(tmp_path / "run", save_interval=0)
    config = dataclasses.replace(config, log=LogConfig(tensorboard=False, wandb_project="tiny"))
    with Job(config, 1) as job:
        assert job.wait() == [2]
        assert "--wandb-project tiny: Weights & Biases cannot be used from this " in job.text(0)
        assert "WANDB_MODE=offline" in job.text(0)
        assert "Traceback" not in job.text(0)


def test_a_spike_is_told_and_noise_is_not() -> None:
    spikes = SpikeDetector(6.0)
    losses = [3.0 + 0.01 * math.sin(n) for n in range(20)]
    assert [spikes.check(loss) for loss in losses] == [None] * 20
    told = spikes.check(4.0)
    assert told is not None
    assert told.startswith("loss 4.0000 is above 3.04")
    assert SpikeDetector(0.0).check(1e9) is None


def test_the_newest_and_every_so_many_stay() -> None:
    known = [5, 10, 15, 20, 25]
    assert expired(known, retain_last=2, retain_interval=10) == [5, 15]
    assert expired(known, retain_last=1, retain_interval=0) == [5, 10, 15, 20]
    assert expired(known, retain_last=0, retain_interval=0) == []
    assert expired([5], retain_last=1, retain_interval=0) == []


def test_every_held_out_row_counts_once(tmp_path: Path, make_config: MakeConfig) -> None:
    """Six rows: some of them, all, and more than there are, at batches that do not divide six."""
    data = make_config(None).data.data_path
    root = tmp_path / "run"
    config = make_config(root, train_iters=1, save_interval=0)
    notes = {}
    losses = {}
    for rows, iters in ((4, 1), (2, 3), (4, 40)):
        changed = dataclasses.replace(
            config,
            save=str(tmp_path / f"{rows}-{iters}"),
            global_batch_size=rows,
            eval_interval=1,
            eval_iters=iters,
            optimizer=dataclasses.replace(config.optimizer, lr=0.0, lr_warmup_iters=0),
        )
        with Job(changed, 2) as job:
            assert job.wait() == [0, 0], job.text(0)
            said = job.text(0)
        notes[rows, iters] = next(x for x in said.splitlines() if x.startswith("validation:"))
        record = json.loads((Path(changed.save) / "log.jsonl").read_text())
        losses[rows, iters] = {
            (part["start"], part["stop"]): part["lm_loss"] for part in record["validation_bins"]
        }
        assert f"# {notes[rows, iters]}\n" in dry_run(check_run(changed, 1))
    assert notes[4, 1] == "validation: the same 4 of 6 held-out rows, each counted once"
    assert notes[2, 3] == "validation: all 6 held-out rows, each counted once"
    asked = "each counted once (eval_iters 40 x global_batch_size 4 asks for 160)"
    assert notes[4, 40] == f"validation: all 6 held-out rows, {asked}"
    found = run_on_ranks(1, score, tmp_path / "2-3", data)[0][0]
    expected = {place: cell.score for place in found.bins if (cell := found.loss(place))}
    for which in ((2, 3), (4, 40)):
        assert losses[which] == pytest.approx(expected, rel=1e-5)  # float32 sums over other splits
    assert losses[4, 1] != pytest.approx(expected, rel=1e-5)


def test_what_of_the_rows_is_real_and_counts_is_summed_up() -> None:
    assert _tokens(1000, 809, 220) == "1,000 tokens, 80.9 % real, 22.0 % in the loss"
    assert _tokens(1000, 1000, 1000) == "1,000 tokens"


def test_rows_that_are_taken_more_than_once_are_said(make_config: MakeConfig) -> None:
    """The last batch of a pass over the rows may begin the next one."""
    config = make_config(None)
    there = len(check_run(config, 1).train_rows)
    for taken, line in (
        (there, None),
        (2 * there, f"rows: {2 * there} rows from {there}: each is used twice"),
        (
            there + 3,
            f"rows: {there + 3} rows from {there}: 3 of them are used twice, the others once",
        ),
        (
            2 * there + 3,
            f"rows: {2 * there + 3} rows from {there}: 3 of them are used 3 times, "
            "the others twice",
        ),
    ):
        config = dataclasses.replace(config, train_iters=taken, global_batch_size=1)
        found = [note for note in check_run(config, 1).notes() if note.startswith("rows:")]
        assert found == ([line] if line else [])


def test_rows_that_lack_a_letter_are_said(make_config: MakeConfig) -> None:
    run = check_run(make_config(None), 1)
    for positions, is_said in ((1024, False), (8192, True)):
        model = dataclasses.replace(run.source.model, max_position_embeddings=positions)
        source = dataclasses.replace(run.source, model=model)
        said = "warning: rows of 128 tokens, where the model has 8,192 positions; 128K is 131,072"
        assert (said in dataclasses.replace(run, source=source).notes()) == is_said


def test_padding_is_no_work(tmp_path: Path) -> None:
    """A row of 12 tokens of which 8 are real, in documents of 3 and 5 tokens."""
    row = Row(np.arange(12), np.asarray([0, 3, 8, 12], dtype=np.int32), 8)
    for mask, area in (("block", 6 + 15), ("none", 36)):
        step = object.__new__(LanguageModelStep)
        step.config = PretrainConfig(data=DataConfig(document_mask=mask))  # type: ignore[arg-type]
        assert step._row_area(row) == area


def test_whole_matrices_of_scores_are_said_aloud(make_config: MakeConfig) -> None:
    config = make_config(None, (1, 2))
    inputs = check_run(config, 2)
    config, model, gpu = inputs.config, inputs.source.model, torch.device("cuda")
    assert (config.precision, model.kv_channels % 4) == ("fp32", 0)
    assert inputs.remarks == check_attention(config, model, gpu, memory_bytes=1) == ()
    assert fp32_notes(config, model) == []
    model = dataclasses.replace(model, kv_channels=6)
    assert "has no fused attention kernel on a GPU" in fp32_notes(config, model)[0]
    # The real choice of kernels; the matrices of 4 heads over 64 tokens of this rank in float32.
    (note,) = check_attention(config, model, gpu, memory_bytes=2 * 4 * 64 * 64 * 4)
    assert "matrices of scores, 1 x 4 heads x 64 x 64 in float32 = 0.00 GiB each" in note
    with pytest.raises(InputError, match=r"GiB: use shorter rows, or a larger cont"):
        check_attention(config, model, gpu, memory_bytes=2 * 4 * 64 * 64 * 4 - 1)
    masked = dataclasses.replace(
        config, data=dataclasses.replace(config.data, document_mask="block")
    )
    (note,) = check_attention(masked, model, gpu, memory_bytes=1)  # documents may be short
    assert "4 heads x up to 64 x 64" in note


def test_tensorboard_that_cannot_be_written_is_told_once(
    tmp_path: Path,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its writer is a thread of its own, whose end would be a trace in the middle of the log."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # restored at the end
    root = tmp_path / "run"
    config = make_config(root, (1, 1), train_iters=STEPS)
    config = dataclasses.replace(config, log=LogConfig(tensorboard=True))
    root.mkdir()
    with progress("Training", STEPS, "iterations") as bar:
        log = run_log.RunLog(root, STEPS, bar, run_log.open_sinks(config, 0))
        log.write(figures(1), to_terminal=False)
        while (root / "tensorboard").exists():  # its thread may write the first record now
            shutil.rmtree(root / "tensorboard", ignore_errors=True)  # the disk is gone
        for number in range(2, 1 + STEPS):
            log.write(figures(number), to_terminal=False)
        log.close()
    said = capsys.readouterr().err
    assert said.count(f"WARNING: TensorBoard's file in {root / 'tensorboard'} ends here") == 1
    assert said.count("No such file or directory") == 1
    assert "Traceback" not in said
    assert "Exception in thread" not in said
    assert len((root / "log.jsonl").read_text().splitlines()) == STEPS


def figures(iteration: int) -> run_log.IterationRecord:
    values = {field.name: 1.0 for field in dataclasses.fields(run_log.IterationRecord)}
    changed = {"phases_ms": {}, "validation_bins": (), "warning": None, "iteration": iteration}
    return run_log.IterationRecord(**{**values, **changed})
