"""The scripts of examples/slurm on a cluster of two nodes: preempted, requeued, run to the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from tests.models import write_llama
from tests.ranks import run_on_ranks
from tests.slurm.cluster import Cluster, Job
from tests.training.conftest import tiny  # noqa: F401 - a fixture
from tests.training.job import every_loss, losses, num_lines
from tests.warm.programs import ROOT

TRAIN_ITERS = 40


@pytest.fixture
def cluster(tmp_path: Path, warm_environment: dict[str, str], tiny: Path) -> Iterator[Cluster]:  # noqa: F811
    image = tmp_path / "image"
    image.touch()
    environment = {
        **warm_environment,
        "RECIPE": "demo-cpu",
        "LOAD": str(tiny / "base"),
        "DATA": str(tiny / "rows"),
        "SAVE": str(tmp_path / "run"),
        "IMAGE": str(image),
        "MOUNTS": f"{tmp_path}:{tmp_path}",
        "SCRIPTS": str(ROOT / "examples" / "slurm"),
        "GPUS_PER_NODE": "1",
    }
    found = Cluster(tmp_path / "slurm", environment)
    yield found
    found.kill()


def flags(train_iters: int = TRAIN_ITERS) -> list[str]:
    """Of a run of two ranks, one a node, over the tiny model."""
    text = (
        f"--train-iters {train_iters} --global-batch-size 2 --save-interval 0 --log-interval 1 "
        "--seq-length 128 --rope-scaling-factor 2 --original-max-position-embeddings 64 "
        "--lr 1e-3 --lr-warmup-iters 2 --lr-decay-style constant --no-tensorboard "
        "--distributed-timeout-minutes 0.5"
    )
    return text.split()


def script(name: str) -> str:
    return str(ROOT / "examples" / "slurm" / name)


def only_job(cluster: Cluster) -> Job:
    (job,) = cluster.jobs.values()
    return job


def until_more(cluster: Cluster, root: Path, lines: int = 4) -> None:
    before = num_lines(root)
    cluster.wait(lambda: num_lines(root) >= before + lines)


def undisturbed(root: Path, words: list[str]) -> dict[int, tuple[float, float]]:
    """Losses of the same run on two ranks without a scheduler."""
    run_on_ranks(2, _pretrain, [*words, "--save", str(root)])
    return losses(root)


def _pretrain(words: list[str]) -> None:
    from megatron_ultralong.cli import main

    main(words)


@pytest.mark.parametrize(
    "interrupt",
    [
        pytest.param(Cluster.preempt, marks=pytest.mark.slow),
        pytest.param(Cluster.near_limit, marks=pytest.mark.faults),
    ],
)
def test_an_interrupted_job_is_requeued_and_goes_on_to_the_last_step(
    cluster: Cluster, tmp_path: Path, interrupt: Callable[[Cluster, Job], None]
) -> None:
    root = tmp_path / "run"
    cluster.run("sbatch", "--nodes=2", script("pretrain_pyxis.sbatch"), *flags())
    job = only_job(cluster)
    until_more(cluster, root)
    interrupt(cluster, job)
    cluster.wait(lambda: job.restarts == 1)
    first = max(losses(root))
    assert 4 <= first < TRAIN_ITERS
    cluster.wait_for_all()
    assert (job.exit_status, job.restarts) == (0, 1), job.text
    assert "saved: requeue" in job.text
    assert f"resumed at iteration {first} of {TRAIN_ITERS}" in job.text
    assert all(len(values) == 1 for values in every_loss(root).values())
    words = ["pretrain", "demo-cpu", "--load", cluster.environment["LOAD"]]
    words += ["--data-path", cluster.environment["DATA"], *flags()]
    assert losses(root) == undisturbed(tmp_path / "plain", words)
    for start in range(2):
        logs = tmp_path / "run-logs" / f"job-{job.number}-{start}"
        assert len(list(logs.glob("node-*/*/attempt_0/*/stderr.log"))) == 2, "one a rank"


@pytest.mark.faults
def test_the_next_job_of_a_chain_goes_on_and_the_rest_is_cancelled(
    cluster: Cluster, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    words = [script("submit_chain.sh"), "3", "--nodes=2", script("pretrain_apptainer.sbatch")]
    cluster.run("bash", *words, *flags())
    first, second, third = cluster.jobs.values()
    until_more(cluster, root)
    assert (second.state, third.state) == ("PENDING", "PENDING")
    cluster.preempt(first)
    cluster.wait_for_all()
    assert (first.exit_status, first.restarts) == (75, 0), first.text
    assert second.exit_status == 0, second.text
    assert third.state == "CANCELLED"
    assert max(losses(root)) == TRAIN_ITERS
    assert "the next job of the chain goes on" in first.text


def test_bad_input_ends_the_job_before_ranks_start(cluster: Cluster, tmp_path: Path) -> None:
    cluster.run("sbatch", script("pretrain_pyxis.sbatch"), *flags(), "--global-batch-size", "0")
    cluster.wait_for_all()
    job = only_job(cluster)
    assert (job.exit_status, job.restarts) == (2, 0), job.text
    assert "global_batch_size must be at least 1, not 0" in job.text
    assert not (tmp_path / "run").exists()


@pytest.mark.faults
def test_numbers_that_are_not_finite_end_a_chain(cluster: Cluster, tmp_path: Path) -> None:
    write_llama(tmp_path / "hf", num_key_value_heads=4)
    weights = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(weights)
    tensors["lm_head.weight"] *= 1e38  # finite, and its products are beyond float32
    save_file(tensors, weights, {"format": "pt"})
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "huge"))
    cluster.environment["LOAD"] = str(tmp_path / "huge")
    words = [script("submit_chain.sh"), "2", "--nodes=2", script("pretrain_pyxis.sbatch")]
    cluster.run("bash", *words, *flags())
    cluster.wait_for_all()
    first, second = cluster.jobs.values()
    assert (first.exit_status, second.state) == (65, "CANCELLED"), first.text
    assert "a person has to look" in first.text


@pytest.mark.faults
def test_a_lost_rank_is_tried_again_until_nothing_comes_of_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.environment["MAX_LOST"] = "2"
    root = tmp_path / "run"
    cluster.run("sbatch", "--nodes=2", script("pretrain_apptainer.sbatch"), *flags(100_000))
    job = only_job(cluster)
    for start in range(2):
        until_more(cluster, root)
        for rank in ranks_of(job):
            os.kill(rank, signal.SIGKILL)
        cluster.wait(lambda start=start: job.restarts == start + 1 or job.exit_status is not None)  # type: ignore[misc]
    assert (job.exit_status, job.restarts) == (1, 1), job.text
    assert "2 starts in a row ended without a checkpoint" in job.text


def ranks_of(job: Job) -> list[int]:
    found = []
    for task in job.tasks():
        for process in psutil.Process(task).children(recursive=True):
            if "RANK" in process.environ():
                found.append(process.pid)
    return found


def test_the_scripts_say_what_a_run_says() -> None:
    """The statuses in job.sh's table are those of the program."""
    from megatron_ultralong.training.state import CANNOT_SAVE
    from megatron_ultralong.training.step import NOT_FINITE
    from megatron_ultralong.training.telling.stop import STOPPED

    text = (ROOT / "examples" / "slurm" / "job.sh").read_text()
    assert f"{NOT_FINITE} | {CANNOT_SAVE})" in text
    assert f"        {STOPPED})" in text
