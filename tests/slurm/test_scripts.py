"""examples/slurm where nothing is lost: bad input, verbs, containers, stages, a chain."""

from __future__ import annotations

from tests.slurm.conftest import SCRIPTS, Run, flags


def test_bad_input_ends_the_job_before_ranks_start(run: Run) -> None:
    job = run.submit(*flags(4), "--global-batch-size", "0")
    job.until_ended()
    assert (job.exit_status, job.restarts) == (2, 0), job.text
    assert "global_batch_size must be at least 1, not 0" in job.text
    assert not run.root.exists()


def test_the_scripts_say_what_a_run_says() -> None:
    """The statuses in job.sh's table are those of the program."""
    from megatron_ultralong.training.saving.run_folder import TAKEN_OVER
    from megatron_ultralong.training.state import CANNOT_SAVE
    from megatron_ultralong.training.step import NOT_FINITE
    from megatron_ultralong.training.telling.stop import STOPPED

    text = (SCRIPTS / "job.sh").read_text()
    assert f"{NOT_FINITE} | {TAKEN_OVER} | {CANNOT_SAVE})" in text
    assert f"        {STOPPED})" in text
