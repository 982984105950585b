"""What job.sh makes of its settings and of the numbered scripts of an example."""

from __future__ import annotations

import pytest

from tests.slurm.conftest import SCRIPTS
from tests.slurm.test_job import Shell, shell  # noqa: F401 - a fixture
from tests.warm.programs import write_program

HANGS = r"""
srun() {
    while [ "$1" != bash ]; do shift; done
    case "$*" in *check_needs.sh*) command "$@"; return ;; esac
    SLURM_NODEID=0 SLURM_STEP_NUM_NODES=1 command "$@" || exec sleep 20
}
"""
"""An srun that does not see that the daemon of its step is gone."""


@pytest.mark.parametrize("step", ["02_prepare", "03_import", "05_sft"])
def test_a_stage_does_not_wait_for_an_srun_whose_nodes_have_ended(
    shell: Shell,  # noqa: F811
    step: str,
) -> None:
    """Steps 2 and 5 turned off the patterns of file names, which find what nodes leave."""
    work = shell.folder / "work"
    for name in ("hf", "run-1m"):
        (work / name).mkdir(parents=True)
    (work / "chats.jsonl").touch()
    write_program(shell.folder / "bin" / "torchrun", ["false"])
    text = f"{HANGS}stage {SCRIPTS.parent}/llama3.1-8b/{step}.sh 1m"
    source = f"a={work}/*.jsonl"
    status, said = shell.run(
        text, "exit 3", WORK=f"{work}", WAIT_SECONDS="0", SOURCES=source, CHATS=source
    )
    assert status == 3, said
    assert "all nodes have ended, srun has not: killed" in said


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"GPUS_PER_NODE": "4"}, 4), ({"GPUS_PER_NODE": "0"}, 8), ({"RANKS": "2"}, 2)],
)
def test_a_stage_starts_as_many_ranks_as_a_node_has_gpus(
    shell: Shell,  # noqa: F811
    settings: dict[str, str],
    expected: int,
) -> None:
    """It started 8, whatever GPUS_PER_NODE said."""
    work = shell.folder / "work"
    for name in ("base", "rows-1m"):
        (work / name).mkdir(parents=True)
    write_program(shell.folder / "bin" / "torchrun", ["false"])
    text = f"stage {SCRIPTS.parent}/llama3.1-8b/04_pretrain.sh 1m"
    _, said = shell.run(text, "exit 3", WORK=f"{work}", **settings)
    assert f"start 0 of pretrain on 1 nodes of {expected} ranks" in said


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("MAX_LOST", "x", "a whole number, 1 or more"),
        ("MAX_LOST", "0", "a whole number, 1 or more"),
        ("WAIT_SECONDS", "5m", "a whole number, 0 or more"),
        ("GPUS_PER_NODE", "gpu:4", "a whole number, 0 or more"),
        ("REQUEUE", "no", "1 or 0"),
    ],
)
def test_a_setting_that_is_none_ends_the_job_at_once(
    shell: Shell,  # noqa: F811
    name: str,
    value: str,
    rule: str,
) -> None:
    """With MAX_LOST=x it was requeued forever, and with REQUEUE=no in any case."""
    status, said = shell.run("run generate one; complete", "touch ran", **{name: value})
    assert status == 2, said
    assert f"{name} must be {rule}, not '{value}'" in said
    assert not (shell.folder / "ran").exists()


def test_a_job_whose_nodes_have_no_torchrun_is_not_requeued(shell: Shell) -> None:  # noqa: F811
    """It waited in the queue two more times before it said the same."""
    status, said = shell.run("run evaluate passkey --load x", "exit 0", GPUS_PER_NODE="2")
    assert status == 127, said
    assert "torchrun: not found" in said
    assert "evaluate-passkey failed with 127: see above" in said
