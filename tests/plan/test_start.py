"""The command that `plan` prints starts, or the plan says in `pretrain`'s words why it does not."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.cli.dispatch import read_training
from megatron_ultralong.cli.plan import plan
from megatron_ultralong.cli.start_of_run import says_who_set
from megatron_ultralong.cli.verbs import VERBS, TrainingVerb, load
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.launch import take_ranks
from megatron_ultralong.program.ranks import as_job_of
from tests.command_line import DOCUMENTS
from tests.models import prepare_rows, write_llama

LENGTHS = (64, 128, 256)
Flags = tuple[list[str], ...]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model with 64 positions, and rows of several lengths."""
    folder = tmp_path_factory.mktemp("inputs")
    write_llama(folder / "hf", num_hidden_layers=2)
    import_checkpoint(ImportConfig(folder / "hf", folder / "megatron"))
    for length in LENGTHS:
        (folder / str(length)).mkdir()
        prepare_rows(folder / str(length), DOCUMENTS, folder / "hf", length)
    return folder


def told_by_pretrain(command: str) -> str:
    """What the checks of a dry run say of a printed command; empty: nothing."""
    program, name, *words = shlex.split(command)
    assert program == "ultralong"
    ranks, words = take_ranks(words)
    verb = VERBS[name]
    assert isinstance(verb, TrainingVerb)
    try:
        with as_job_of(ranks):
            options, default, num_ranks, _ = read_training(name, verb, words)
            with says_who_set(words, default):
                load(verb.check_early)(options, num_ranks)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("step", [10, pytest.param(1, marks=pytest.mark.faults)])
@pytest.mark.parametrize("recipe", ["extend", "small", "demo-cpu", "llama3.1-8b-1m"])
def test_what_is_printed_starts_or_the_plan_says_why_not(
    inputs: Path, capsys: pytest.CaptureFixture[str], recipe: str, step: int
) -> None:
    factors: Flags = ([], ["--rope-scaling-factor", "2"], ["--rope-scaling-factor", "8"])
    originals: Flags = ([], ["--original-max-position-embeddings", "64"])
    scalings: Flags = ([], ["--rope-scaling", "linear"], ["--rope-scaling", "keep"])
    told = {True: 0, False: 0}
    cases = list(itertools.product(LENGTHS, factors, originals, scalings))
    for length, *flags in cases[::step]:
        folders = [
            "--load",
            str(inputs / "megatron"),
            "--data-path",
            str(inputs / str(length) / "rows"),
        ]
        words = [
            recipe,
            "--gpus",
            "2",
            *folders,
            "--seq-length",
            str(length),
            *itertools.chain(*flags),
        ]
        found = plan(words)
        assert found is not None
        said = told_by_pretrain(found.command)
        assert found.refusal == said, words
        assert bool(said) == ("refuses that as it stands: " in capsys.readouterr().out)
        told[bool(said)] += 1
    assert all(told.values()), told


FOLDERS = {
    "--load hf": ("convert import hf base", "base"),
    "--model hf": ("convert import hf base", "base"),
    "--model hf --load new": ("convert import hf new", "new"),
    "--model hf --load megatron": ("", "megatron"),
    "--model megatron": ("", "base"),
    "--load llama3.1-8b": ("", "base"),
    "--model llama3.1-8b --load new": ("", "new"),
    "--model llama3.1-8b": ("", "base"),
}


@pytest.mark.parametrize("length", ["", " --seq-length 128"])
@pytest.mark.parametrize("flags", FOLDERS)
def test_the_command_loads_what_pretrain_takes(
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    length: str,
) -> None:
    """A folder that is to be imported first has that line before it, and both lines work."""
    for name in ("hf", "megatron"):
        (tmp_path / name).symlink_to(inputs / name)
    monkeypatch.chdir(tmp_path)
    plan(["extend", "--gpus", "8", *flags.split(), *length.split()])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    commands = [line for line in lines if line.startswith("ultralong ")]
    first, load = FOLDERS[flags]
    assert commands[:-1] == ([f"ultralong {first}"] if first else [])
    assert f" --load {load} " in commands[-1]
    if first:
        source, target = first.split()[2:]
        import_checkpoint(ImportConfig(Path(source), Path(target)))
    if first and length:
        data = f"{commands[-1]} --data-path {inputs / '128' / 'rows'}"
        data = data.replace("--data-path rows ", "")
        assert "ultralong.json" not in told_by_pretrain(data)


@pytest.mark.parametrize("flag", ["--model", "--load"])
def test_a_checkpoint_that_nobody_names_is_of_any_model(
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flag: str,
) -> None:
    (tmp_path / "base").symlink_to(inputs / "megatron")
    monkeypatch.chdir(tmp_path)
    plan(["extend", "--gpus", "8", flag, str(inputs / "hf"), "--seq-length", "128"])
    assert f"ultralong convert import {inputs / 'hf'} base\n" in capsys.readouterr().out


def test_a_row_that_ranks_do_not_divide(inputs: Path) -> None:
    """What came from ranks and rows is not said to be the recipe's, and what helps is named."""
    folders = f"--load {inputs / 'megatron'} --data-path {inputs / '128' / 'rows'}"
    said = told_by_pretrain(f"ultralong pretrain small {folders} --ranks 3")
    assert (
        "use --context-parallel-size 1, 2, 4, 8, 16, 32 or 64, with a multiple of as many ranks"
        in said
    )
    assert (
        "or prepare rows of 126 or 132; the recipe small works out context_parallel_size 3 " in said
    )
    assert (
        "(all ranks (--ranks, --gpus) over tensor and pipeline parallel sizes), seq_length 128 "
        in said
    )
    assert said.endswith("(of the rows, or --seq-length)")
    assert not told_by_pretrain(f"ultralong pretrain small {folders} --ranks 4")
