"""`plan` without a recipe: how far a model can be extended on some GPUs, and by which command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from megatron_ultralong import cli
from megatron_ultralong.cli.start_of_run import begin
from megatron_ultralong.config import command_line
from megatron_ultralong.config.recipes import FOR_PRETRAIN, PRETRAIN_RECIPES, SFT_RECIPES
from megatron_ultralong.config.training import PretrainConfig, SftConfig
from megatron_ultralong.plan.command import LENGTHS, short_length
from megatron_ultralong.plan.estimate import gpus_of_a_node
from megatron_ultralong.program.launch import take_ranks
from tests.command_line import refusal

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "base"
EIGHT = ("--gpus", "8", "--gpu", "h100-80gb", "--model", "llama3.1-8b")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """What `plan` prints, and the command in it."""
    capsys.readouterr()
    cli.main(["plan", *words])
    text = capsys.readouterr().out
    (command,) = [line.strip() for line in text.splitlines() if " pretrain " in line]
    return text, command


def parsed(command: str) -> tuple[PretrainConfig, int]:
    """The run that a printed command starts, and its ranks."""
    program, *words = shlex.split(command)
    assert program == "ultralong"
    ranks, words = take_ranks(words)
    default, flags = begin(words[0], words[1:], FOR_PRETRAIN, PretrainConfig)
    assert ranks is not None
    return command_line.parse(PretrainConfig, "pretrain", flags, default), ranks


def test_eight_h100_and_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """Every usual length has its layout, memory and hours, and the longest its command."""
    table, command = printed(capsys, *EIGHT)
    layouts = {}
    for length in LENGTHS:
        row = re.search(rf"│ {short_length(length)} +│ (TP \d, CP \d[^│]*?) +│ +([\d.]+) │", table)
        assert row, length
        assert float(row[2]) <= 79.1
        layouts[length] = row[1]
    run, ranks = parsed(command)
    assert (run.data.seq_length, ranks) == (LENGTHS[-1], 8)
    assert run.parallel.model_parallel_size == 8
    for word in ("host GiB a node", "step, s", "MFU", "hours"):
        assert word in table
    # A length of its own has the same layout, and a command that starts it.
    text, command = printed(capsys, *EIGHT, "--seq-length", "512K")
    assert text.splitlines()[1].split(";")[0] == layouts[2**19]
    run, ranks = parsed(command)
    assert (run.data.seq_length, ranks) == (2**19, 8)
    size = run.parallel.context_parallel_size
    assert f"TP {run.parallel.tensor_model_parallel_size}, CP {size}, " in layouts[2**19]
    assert run.memory.offload_activations == ("offloading" in layouts[2**19])


@pytest.mark.parametrize("recipe", PRETRAIN_RECIPES | SFT_RECIPES)
def test_each_recipe_has_its_command(capsys: pytest.CaptureFixture[str], recipe: str) -> None:
    """Which pretrain or sft reads; a flag of several values is in it once."""
    model = ("--model", "llama3.2-1b")
    words = ("--gpus", "8", *model, "--lr", "1e-4", "--hierarchical-context-parallel-sizes")
    flags = ("--cp-comm-type", "a2a+p2p", "--context-parallel-size", "4", "--seq-length", "8K")
    layout = ("--tensor-model-parallel-size", "2", "--global-batch-size", "8")
    capsys.readouterr()
    cli.main(["plan", recipe, *words, "2", "2", *flags, *layout])
    line = next(one for one in capsys.readouterr().out.splitlines() if f" {recipe} --" in one)
    program, verb, *rest = shlex.split(line)
    assert program == "ultralong"
    ranks, rest = take_ranks(rest)
    options = SftConfig if recipe in SFT_RECIPES else PretrainConfig
    default, typed = begin(verb, rest, PRETRAIN_RECIPES | SFT_RECIPES, options)
    run = command_line.parse(options, verb, typed, default)
    assert (ranks, run.optimizer.lr, run.data.seq_length) == (8, 1e-4, 8192)
    assert run.parallel.hierarchical_context_parallel_sizes == (2, 2)


def test_flags_of_the_run_are_in_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--seq-length=256K", "--lr", "1e-5", "--num-alternatives", "2", "--deterministic-mode")
    _, command = printed(capsys, *EIGHT, *words)
    run, _ = parsed(command)
    assert run.optimizer.lr == 1e-5
    assert run.deterministic_mode
    assert command.count("--seq-length") == 1
    assert "alternatives" not in command
    _, command = printed(capsys, "--gpus", "16", *EIGHT[2:], "--seq-length", "1M")
    assert command.startswith("torchrun --nnodes 2 --nproc-per-node 8 ")


@pytest.mark.parametrize(("gpus", "most"), [(12, 8), (20, 8), (17, 8), (9, 4), (64, 8)])
def test_the_command_starts_the_gpus_planned(gpus: int, most: int) -> None:
    for tensor in (size for size in (1, 2, 4, 8) if gpus % size == 0):
        share = gpus_of_a_node(gpus, most, tensor)
        assert 1 <= share <= most
        assert gpus % share == 0
        assert share % tensor == 0 or tensor > most
    assert (gpus_of_a_node(12, 8, 2), gpus_of_a_node(12, 8, 4)) == (6, 4)


def test_the_command_for_a_node_and_a_half(capsys: pytest.CaptureFixture[str]) -> None:
    _, command = printed(capsys, "--gpus", "12", *EIGHT[2:], "--seq-length", "256K")
    found = re.match(r"torchrun --nnodes (\d+) --nproc-per-node (\d+) ", command)
    assert found
    assert int(found[1]) * int(found[2]) == 12


def test_what_has_no_plan_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = refusal(capsys, "plan", "--gpus", "1", "--model", "llama3.1-70b")
    assert "rows of 131,072 do not fit: none of 5 layouts of 1 GPU fits; the nearest: TP 1" in error
    assert "change: `--gpus " in error
    error = refusal(capsys, "plan", "--gpus", "2", "--model", "llama3.1-8b")
    assert "change: `--optimizer-cpu-offload` (TP 1, CP 2" in error, (
        "that of docs/your-own-model.md"
    )
    error = refusal(capsys, "plan", *EIGHT, "--json", str(tmp_path / "plan.json"))
    assert "--json, --png and --no-search are about one plan: give its --seq-length" in error
    assert "names no model" in refusal(capsys, "plan", "--gpus", "8")


@pytest.mark.parametrize("more", [(), ("--seq-length", "4M")])
def test_a_model_of_few_positions_is_told_what_the_paper_reached(
    capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    words = ("--gpus", "8", "--gpu", "h100-80gb", "--model")
    text, _ = printed(capsys, *words, str(DEMO), *more)  # 512 positions
    assert "warning: --rope-scaling-factor 8,192 is beyond 512" in text
    assert "rows of up to 262,144 tokens are within it" in text
    text, _ = printed(capsys, *EIGHT, *more)
    assert "is beyond" not in text
