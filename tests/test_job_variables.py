"""Variables that a shell, a container or a scheduler leaves: a message, or a job that runs."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from megatron_ultralong import cli
from megatron_ultralong.program import ranks
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranks import check_start, check_variables, world_size
from tests.command_line import pretrain_words, refusal, write_inputs

ALL = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
VALUES = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variables")
    write_inputs(folder)
    return folder


@pytest.fixture(autouse=True)
def _none(monkeypatch: pytest.MonkeyPatch) -> None:
    others = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    for name in (*ALL, *others, *TASKS):
        monkeypatch.delenv(name, raising=False)


SETS = [names for n in range(5) for names in itertools.combinations(ALL, n)]


@pytest.mark.parametrize("names", SETS, ids=" ".join)
def test_half_a_job_is_told(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    """A rank that cannot find the others ends before libraries are loaded, with what is missing."""
    for name in names:
        monkeypatch.setenv(name, VALUES[name])
    check_variables()
    if names == ALL or not {"RANK", "WORLD_SIZE"} & set(names):
        check_start()
        return
    lacking = ", ".join(name for name in ALL if name not in names)
    with pytest.raises(InputError, match=f" in the environment without {lacking}: "):
        check_start()


TASKS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
    "MV2_COMM_WORLD_SIZE": "mpirun_rsh",
    "JSM_NAMESPACE_SIZE": "jsrun",
}


@pytest.mark.parametrize("name", TASKS)
def test_tasks_that_are_no_ranks_do_not_each_do_the_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], inputs: Path, name: str
) -> None:
    """`srun --ntasks 8 ultralong pretrain` trained eight times, or once beside seven refusals."""
    monkeypatch.setenv(name, "8")
    said = refusal(capsys, *pretrain_words(inputs, "--context-parallel-size", "1"))
    assert f"one of 8 tasks of {TASKS[name]} ({name})" in said
    assert f"`unset {name}`" in said
    assert f"one of 8 tasks of {TASKS[name]}" in refusal(
        capsys, *pretrain_words(inputs), "--ranks", "2"
    )
    for variable, value in VALUES.items():
        monkeypatch.setenv(variable, value)
    check_start()  # as torchrun in each task, or a script, has it


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("value", ["1", "", "x"])
def test_one_task_is_a_job(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    check_start()


def test_one_rank_is_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_start()


NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
NO_NUMBERS = ("", "x", "-1", "1.0", "0x1", " 1", "\u0661", "9" * 50)


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("name", NUMBERS)
def test_each_must_be_a_number(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    inputs: Path,
    name: str,
    value: str,
) -> None:
    monkeypatch.setenv(name, value)
    said = refusal(capsys, *pretrain_words(inputs))
    assert f"{name} is {value!r} in the environment" in said
    assert f"{name} is {value!r} in the environment" in refusal(capsys, "doctor")


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_verbs_that_are_no_job_read_none_of_them(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    inputs: Path,
    tmp_path: Path,
    value: str,
) -> None:
    for name in NUMBERS:
        monkeypatch.setenv(name, value)
    cli.main(["plan", "llama3.1-8b-1m", "--gpus", "32"])
    assert "GiB" in capsys.readouterr().out
    cli.main(["convert", "import", str(inputs / "hf"), str(tmp_path / "model")])
    assert "tokenizer sha256" in capsys.readouterr().out


def test_ranks_are_of_one_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], inputs: Path
) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        cli.main([*pretrain_words(inputs)])
    assert "RANK is 2 in the environment and WORLD_SIZE 2: " in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "0")
    assert world_size() == 0
    with pytest.raises(InputError, match="must be a whole number of at least 1"):
        check_variables()


def test_a_job_on_paper_needs_its_size_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], inputs: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    cli.main([*pretrain_words(inputs, "--dry-run")])
    capsys.readouterr()
    said = refusal(capsys, *pretrain_words(inputs))
    assert "WORLD_SIZE (2) in the environment without RANK, MASTER_ADDR, MASTER_PORT: " in said


@pytest.mark.parametrize("level", ["debug", "x", "10"])
def test_a_level_that_logging_does_not_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], level: str
) -> None:
    monkeypatch.setenv("ULTRALONG_LOG", level)
    said = refusal(capsys, "plan", "small", "--gpus", "1")
    assert f"ULTRALONG_LOG is {level!r} in the environment: use DEBUG or INFO or " in said


def test_an_empty_level_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a template of a job script leaves it."""
    monkeypatch.setenv("ULTRALONG_LOG", "")
    cli.main(["plan", "small", "--model", "demo", "--gpus", "1", "--gpu", "h100-80gb"])


def test_a_size_left_from_another_job_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], inputs: Path
) -> None:
    """The batch or the layout alone was blamed, which does not divide by it."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    said = refusal(capsys, *pretrain_words(inputs))
    assert "world_size (3) must be divisible by" in said
    assert "; this is checked for 3 ranks, by WORLD_SIZE in the environment: `unset WORLD_" in said
    monkeypatch.setenv("RANK", "0")
    assert "by WORLD_SIZE" not in refusal(capsys, *pretrain_words(inputs))


def said_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command has said that is refused, with the lines before."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    return capsys.readouterr().err


NESTED = [
    ["plan", "llama3.1-8b-1m", "--gpus", "nothing"],
    ["convert", "import", "gone", "model"],
    ["generate", "--load", "gone", "--prompt", "x"],
    ["generate", "--load", "gone", "--prompt", "x", "--ranks", "2"],
    ["doctor", "--bogus"],
]


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("kind", ["ended", "killed", "inside", "torchrun since"])
def test_a_left_over_launcher_hides_no_message(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    kind: str,
    rank: str,
) -> None:
    """Of a job that has ended, was killed, or whose rank has started this process."""
    folder = tmp_path / f"{ranks.FOLDER_PREFIX}x"
    launcher = str(os.getppid() if kind == "inside" else 2**22 - 1)
    if kind != "ended":
        folder.mkdir()
        (folder / ranks.LAUNCHER_FILE).write_text(launcher)
        (folder / f"{rank}.rank").write_text("1")
    error_file = folder / f"{rank}.json" if kind != "torchrun since" else tmp_path / "error.json"
    of_rank = {**VALUES, "RANK": rank, ranks.ERROR_FILE: str(error_file)}
    for words in NESTED:
        for name, value in {**of_rank, ranks.LAUNCHED: launcher}.items():
            monkeypatch.setenv(name, value)
        said = said_of(capsys, *words)
        told, message = said.splitlines()[0], said.splitlines()[-1]
        if kind == "torchrun since":
            assert ranks.LAUNCHED not in os.environ
            assert os.environ["RANK"] == rank
        else:
            assert told.startswith(f"warning: {ranks.LAUNCHED}, RANK, "), said
            assert f"(process {launcher}), which this process is not: they are not" in told
            assert "RANK" not in os.environ
            assert "error: " in message
            assert not error_file.exists()
        assert "error: " in said, said


def test_the_process_of_a_rank_keeps_its_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / f"{ranks.FOLDER_PREFIX}x"
    folder.mkdir()
    monkeypatch.setenv(ranks.LAUNCHED, str(os.getppid()))
    monkeypatch.setenv(ranks.ERROR_FILE, str(folder / "1.json"))
    (folder / ranks.LAUNCHER_FILE).write_text(str(os.getppid()))
    assert ranks.leave_out_others() == ""
    assert ranks.is_launched()
    assert (folder / "1.rank").read_text() == str(os.getpid())
    (folder / ranks.LAUNCHER_FILE).unlink()
    assert not ranks.is_launched()


def test_a_name_that_nothing_reads_and_a_kernel_that_is_kept_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ULTRALONG_ATENTION_KERNEL", "math")
    for name in ("HOME", "JOB", "DOC", "TAG", "LAUNCH"):  # of a user's own
        monkeypatch.setenv(f"ULTRALONG_{name}", "x")
    said = said_of(capsys, "generate", "--load", "gone", "--prompt", "x")
    assert "ULTRALONG_ATENTION_KERNEL in the environment is not read; perhaps you meant ULT" in said
    assert said.count("is not read") == 1
    monkeypatch.setenv("ULTRALONG_ATTENTION_KERNEL", "math")
    said = said_of(capsys, "generate", "--load", "gone", "--prompt", "x")
    assert "attention kernel math: ULTRALONG_ATTENTION_KERNEL is set in the environment" in said


@pytest.mark.parametrize(("value", "is_told"), [("1", True), ("0", False), ("", False)])
def test_products_that_a_library_rounds_are_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    value: str,
    is_told: bool,
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", value)
    said = said_of(capsys, "generate", "--load", "gone", "--prompt", "x")
    assert ("warning: NVIDIA_TF32_OVERRIDE in the environment has cuBLAS round" in said) is is_told


@pytest.mark.parametrize("value", ["0", "", "true"])
@pytest.mark.parametrize("name", ["NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN"])
def test_kernels_of_transformer_engine_are_not_forbidden(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    inputs: Path,
    name: str,
    value: str,
) -> None:
    monkeypatch.setenv(name, value)
    load = ("--load", str(inputs / "megatron"))
    for words in (
        pretrain_words(inputs, "--context-parallel-size", "1"),
        ("generate", *load, "--prompt", "x", "--max-new-tokens", "1"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert f"{name}={value} in the environment" in error
        assert "unset NVTE_FLASH_ATTN NVTE_FUSED_ATTN NVTE_UNFUSED_ATTN" in error
        assert "Traceback" not in error
