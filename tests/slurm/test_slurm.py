"""Jobs that are signalled, preempted, requeued, or lost in parts: each continues, or says why."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import psutil
import pytest

from megatron_ultralong.program.owner_record import read_owners
from tests.patience import patience
from tests.ranks import run_on_ranks
from tests.slurm.cluster import Job
from tests.slurm.conftest import Pauses, Run, flags
from tests.training.job import every_loss, losses

pytestmark = pytest.mark.slurm


def goes_on(run: Run, job: Job, start: int = 1) -> None:
    """The job's next start continues where the one before has saved."""
    job.until_restarted(start)
    last = max(losses(run.root))
    job.until_said(f"resumed at iteration {last} of")
    run.until_more(job)
    assert all(len(values) == 1 for values in every_loss(run.root).values())
    assert job.traces == []
    job.cancel()
    assert job.restarts == start, "a job that was cancelled stays cancelled"


def undisturbed(root: Path, run: Run, words: list[str]) -> dict[int, tuple[float, float]]:
    """Losses of the same run on two ranks without a scheduler."""
    its = run.environment
    words = ["pretrain", its["RECIPE"], "--load", its["LOAD"], "--data-path", its["DATA"], *words]
    run_on_ranks(2, _main, [*words, "--save", str(root)])
    return losses(root)


def _main(words: list[str]) -> None:
    from megatron_ultralong.cli import main

    main(words)


def test_a_signal_before_in_and_after_the_dry_run_and_in_training(
    run: Run, pauses: Pauses, tmp_path: Path
) -> None:
    """Each start hears it one stage later; the last trains to the end."""
    run.environment["MAX_LOST"] = "4"
    words = flags(60)
    before = pauses("scontrol", "show", once=True)
    inside = pauses("ultralong", "pretrain", once=True)
    job = run.submit("--nodes=2", *words)
    run.cluster.wait(before.exists)
    job.signal("USR1")
    before.rmdir()
    job.until_said("stopped before its dry run: requeue")
    job.until_restarted(1)
    run.cluster.wait(inside.exists)
    job.signal("USR1")
    job.until_said("stopped in its dry run: requeue")
    inside.rmdir()
    job.until_restarted(2)
    job.until_said("srun has ended with 0", since="start 2 of pretrain")
    job.signal("USR1")
    job.until_said("stopped with nothing to save: requeue", since="start 2 of pretrain")
    job.until_restarted(3)
    assert not run.root.exists() or not losses(run.root), "it was to be before the first step"
    run.until_more(job)
    job.signal("USR1")
    job.until_said("saved: requeue")
    last = max(losses(run.root))
    job.until_ended()
    assert (job.exit_status, job.restarts) == (0, 4), job.text
    assert f"resumed at iteration {last} of 60" in job.text
    assert job.traces == []
    assert losses(run.root) == undisturbed(tmp_path / "plain", run, words[1:])


def test_stops_before_the_first_step_are_counted(run: Run, pauses: Pauses) -> None:
    run.environment["MAX_LOST"] = "2"
    reached = pauses("scontrol", "show")
    job = run.submit("--nodes=2", *flags())
    for start in range(2):
        run.cluster.wait(reached.exists)
        job.signal("USR1")
        reached.rmdir()
        if not start:
            job.until_restarted()
    job.until_ended()
    assert (job.exit_status, job.restarts) == (1, 1), job.text
    assert "2 starts in a row ended without progress" in job.text
    assert not run.root.exists()


def test_the_time_limit_s_signal(run: Run) -> None:
    lead = 25  # seconds before the limit, which is one of minutes
    minutes = math.ceil((lead + patience(30.0)) / 60.0)
    job = run.submit("--nodes=2", f"--time={minutes}", f"--signal=B:USR1@{lead}", *flags())
    job.until_said("asked to stop", "saved: requeue", seconds=60.0 * minutes)
    goes_on(run, job)


def test_preemption_with_grace(run: Run) -> None:
    job = run.submit("--nodes=2", *flags())
    run.until_more(job)
    other = run.cluster.run(
        *("sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive"),
        *("--output=/dev/null", "--wrap=sleep 1"),
    )
    job.until_said("saved: requeue")
    run.job(int(other)).until_ended()
    goes_on(run, job)


def test_requeue_from_outside(run: Run) -> None:
    job = run.submit("--nodes=2", *flags())
    run.until_more(job)
    run.cluster.run("scontrol", "requeue", str(job.number))
    goes_on(run, job)


@pytest.mark.parametrize("nodes", [1, 2])
def test_step_daemons_are_lost(run: Run, nodes: int) -> None:
    """srun waits for them for ever; the ranks, which nobody has killed, come to their end."""
    run.environment["GPUS_PER_NODE"] = str(2 // nodes)
    job = run.submit(f"--nodes={nodes}", *flags(60))
    run.until_more(job)
    assert run.cluster.kill(f"slurmstepd: [{job.number}.1]") == nodes
    job.until_ended()
    assert (job.exit_status, job.restarts) == (0, 0), job.text
    assert max(losses(run.root)) == 60


def test_one_step_daemon_is_lost_and_its_rank(run: Run) -> None:
    job = run.submit("--nodes=2", "--", *flags()[1:], "--save-interval", "5")
    run.until_more(job, 12)
    rank = job.ranks()[1]
    daemon = next(
        parent
        for parent in psutil.Process(rank).parents()
        if f"slurmstepd: [{job.number}.1]" in " ".join(parent.cmdline())
    )
    daemon.kill()
    os.kill(rank, signal.SIGKILL)
    job.until_said("LOST RANK: rank 1", "the run was lost: requeue")
    job.until_restarted()
    job.until_said("resumed at iteration")
    run.until_more(job)


def test_a_rank_is_killed_twice(run: Run) -> None:
    run.environment["MAX_LOST"] = "2"
    job = run.submit("--nodes=2", *flags())
    for start in range(2):
        run.until_more(job)
        os.kill(job.ranks()[1 - start], signal.SIGKILL)
        if not start:
            job.until_restarted()
    job.until_ended()
    assert (job.exit_status, job.restarts) == (1, 1), job.text
    assert "2 starts in a row ended without progress" in job.text
    assert "LOST RANK" in job.text


def test_of_two_jobs_of_one_run_the_second_is_refused(run: Run) -> None:
    """Submitted at one moment, to a node each: one of them has the folder."""
    run.environment["GPUS_PER_NODE"] = "2"
    jobs = [run.submit("--nodes=1", *flags()) for _ in range(2)]
    run.cluster.wait(lambda: any(job.has_ended() for job in jobs))
    second, first = sorted(jobs, key=lambda job: not job.has_ended())
    assert (second.exit_status, second.restarts) == (2, 0), second.text
    assert f"--save {run.root} is in use by pretrain (process" in second.text
    run.until_more(first)
    third = run.submit("--nodes=1", *flags())
    before = {path: path.stat().st_ino for path in run.root.iterdir()}
    third.until_ended()
    assert third.exit_status == 2, third.text
    assert "is in use by pretrain" in third.text
    assert {path: path.stat().st_ino for path in run.root.iterdir()} == before
    assert [record.job for record in read_owners(run.root)] == [f"SLURM job {first.number}"]
    first.signal("USR1")
    goes_on(run, first)


def test_the_next_job_of_a_chain_goes_on_and_the_rest_is_cancelled(run: Run) -> None:
    first, second, third = run.chain(3, *flags(60)[1:])
    run.until_more(first)
    assert (second.state, third.state) == ("PENDING", "PENDING")
    first.signal("USR1")
    second.until_ended()
    assert (first.exit_status, first.restarts) == (75, 0), first.text
    assert "saved: the next job of the chain continues" in first.text
    assert second.exit_status == 0, second.text
    assert third.state == "CANCELLED"
    assert max(losses(run.root)) == 60
    assert "unbound" not in first.text + second.text


def test_starts_without_progress_are_counted_over_a_chain(run: Run, pauses: Pauses) -> None:
    run.environment["MAX_LOST"] = "2"
    reached = pauses("scontrol", "show")
    first, second, third = run.chain(3, *flags()[1:])
    for job in (first, second):
        run.cluster.wait(reached.exists)
        job.signal("USR1")
        reached.rmdir()
    third.until_ended()
    assert (first.exit_status, second.exit_status) == (75, 1), second.text
    assert third.state == "CANCELLED"


def test_a_node_is_lost_and_comes_back(run: Run) -> None:
    """Its daemon and all that ran there."""
    job = run.submit("--nodes=2", "--", *flags()[1:], "--save-interval", "5")
    run.until_more(job, 12)
    rank = job.ranks()[1]
    run.cluster.kill("slurmd -N node2")
    run.cluster.kill(f"slurmstepd: [{job.number}.1]")
    os.kill(rank, signal.SIGKILL)
    run.cluster.start_slurmd("node2")
    job.until_restarted()
    job.until_said("resumed at iteration")
    run.until_more(job)
    job.cancel()
