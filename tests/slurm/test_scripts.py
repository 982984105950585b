"""examples/slurm where nothing is lost: bad input, verbs, containers, stages, a chain."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import why_no_pyxis
from tests.slurm.conftest import SCRIPTS, Run, flags
from tests.training.job import losses
from tests.warm.programs import ROOT


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


def image(run: Run, folder: Path) -> Path:
    """A container: the system, Python, the program; of the disks it has only what is mounted."""
    system = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/proc", "/dev", "/sys"]
    programs = [sys.prefix, sys.base_prefix, str(ROOT / "megatron_ultralong"), str(ROOT / "tests")]
    own = [str(run.cluster.folder / "programs"), str(run.cluster.folder / "bin")]
    path = folder / "image"
    names = [name for name in (*system, *programs, *own) if Path(name).exists()]
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def working_folder(folder: Path) -> Path:
    """A clone in a home that is not among the mounts."""
    home = folder / "home"
    shutil.copytree(ROOT / "examples" / "slurm", home / "examples" / "slurm")
    return home


@pytest.mark.slurm
@pytest.mark.parametrize(("kind", "logs"), [("pyxis", ""), ("apptainer", "../of-jobs/logs")])
def test_a_container_sees_the_working_folder_whatever_is_mounted(
    run: Run, tmp_path: Path, kind: str, logs: str
) -> None:
    """And the folder of the logs, wherever that is."""
    if kind == "pyxis" and (reason := why_no_pyxis()):
        pytest.skip(reason)
    home, shared = working_folder(tmp_path), tmp_path / "shared"
    shared.mkdir()
    for name in ("LOAD", "DATA"):
        source = Path(run.environment[name])
        shutil.copytree(source, shared / source.name)
        run.environment[name] = str(shared / source.name)
    run.root = shared / "run"
    run.environment.update(
        CONTAINER=kind, IMAGE=str(image(run, tmp_path)), MOUNTS=f"{shared}:{shared}",
        SAVE=str(run.root), LOGS=logs, SCRIPTS="examples/slurm", GPUS_PER_NODE="2",
    )  # fmt: skip
    job = run.submit(*flags(4), script="examples/slurm/ultralong.sbatch", folder=home)
    job.until_ended()
    assert (job.exit_status, job.restarts) == (0, 0), job.text
    assert max(losses(run.root)) == 4


@pytest.mark.slurm
def test_the_stand_in_of_pyxis_refuses_a_folder_that_is_not_mounted(
    run: Run, tmp_path: Path
) -> None:
    if reason := why_no_pyxis():
        pytest.skip(reason)
    home, shared = working_folder(tmp_path), tmp_path / "shared"
    shared.mkdir()
    words = ["srun", f"--container-image={image(run, tmp_path)}", f"--container-workdir={home}"]
    run.cluster.run(*words, f"--container-mounts={home}:{home}", "test", "-d", "examples")
    with pytest.raises(AssertionError, match="couldn't chdir"):
        run.cluster.run(*words, f"--container-mounts={shared}:{shared}", "true")


@pytest.mark.slurm
def test_doctor_on_two_nodes(run: Run) -> None:
    job = run.submit("--nodes=2", "--", "--megabytes", "1", script="doctor.sbatch")
    job.until_ended()
    assert job.exit_status == 0, job.text
    assert "2 ranks over gloo, 1 MiB" in job.text


@pytest.mark.slurm
def test_doctor_on_two_nodes_of_which_the_second_is_sick(run: Run, tmp_path: Path) -> None:
    sick = tmp_path / "sick.sh"
    sick.write_text('if [ "${SLURM_NODEID:-}" = 1 ]; then export NCCL_SOCKET_IFNAME=nosuch; fi\n')
    run.environment["BASH_ENV"] = str(sick)
    job = run.submit("--nodes=2", "--", "--megabytes", "1", script="doctor.sbatch")
    job.until_ended()
    assert job.exit_status == 1, job.text
    assert "0 problems" in job.text, "the first is well"


@pytest.mark.slurm
def test_the_stages_of_the_example_follow_each_other(run: Run, tmp_path: Path) -> None:
    run.environment.update(WORK=str(tmp_path / "work"), GPUS_PER_NODE="2")
    shutil.copytree(ROOT / "examples" / "demo" / "base", tmp_path / "work" / "hf")
    folder = ROOT / "examples" / "llama3.1-8b" / "slurm"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        path.name.replace(".sh", ".sbatch") for path in sorted(folder.parent.glob("0[2-7]_*.sh"))
    ]
    before = ""
    for name in names:
        after = [f"--dependency=afterok:{before}"] if before else []
        job = run.submit(*after, "--", "--mock", "1m", script=str(folder / name))
        before = str(job.number)
    for job in run.jobs:
        job.until_ended()
        assert (job.exit_status, job.restarts) == (0, 0), job.text
    assert (tmp_path / "work" / "Llama-3.1-8B-UltraLong-1m" / "config.json").is_file()
    assert (tmp_path / "work" / "report-1m" / "index.html").is_file()


@pytest.mark.slurm
def test_a_verb_by_its_words(run: Run, tmp_path: Path) -> None:
    run.environment.update(VERB="convert")
    output = tmp_path / "exported"
    job = run.submit("--", "export", run.environment["LOAD"], str(output))
    job.until_ended()
    assert (job.exit_status, job.restarts) == (0, 0), job.text
    assert (output / "config.json").is_file()
