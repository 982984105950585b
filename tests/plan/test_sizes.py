"""Numbers of GPUs that people have: a layout, or the smallest changes that give one."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from megatron_ultralong import cli
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.plan.search import stage_ends
from tests.command_line import refusal
from tests.plan.test_plan import planned

MODELS = ("llama3.1-8b", "llama3.1-70b", "llama3.1-405b")
GPUS = (8, 12, 16, 24, 40, 96, 1024)
LENGTHS = (131_072, 1_048_576)
QUICK = {
    ("llama3.1-8b", 131_072, 12),
    ("llama3.1-405b", 131_072, 1024),
}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product(MODELS, LENGTHS, GPUS)
]


def suggested(text: str) -> list[str]:
    """Flags that a message or a plan suggests."""
    return re.findall(r"`(--[^`]+)`", text)


def changed(words: list[str], suggestion: str) -> list[str]:
    """The words of a command with a suggestion's instead of those of the same flags."""
    new = suggestion.split()
    names = {word for word in new if word.startswith("--")}
    kept: list[str] = []
    skip = False
    for word in words:
        if word.startswith("--"):
            skip = word in names
        if not skip:
            kept.append(word)
    return [*kept, *new]


@pytest.mark.parametrize(("model", "length", "gpus"), CASES)
def test_a_layout_or_changes_that_give_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, length: int, gpus: int
) -> None:
    words = ["plan", "llama3.1-8b-1m", "--model", model, "--seq-length", str(length)]
    words += ["--gpus", str(gpus)]
    try:
        plan = planned(tmp_path, *words)
    except SystemExit:
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        # The nearest layout, what it lacks, what to change.
        places = [
            message.index(part) for part in ("the nearest: TP ", " more than the ", "change:")
        ]
        assert places == sorted(places)
        suggestions = suggested(message)
        assert suggestions, message
        for suggestion in suggestions:
            assert planned(tmp_path, *changed(words, suggestion))["feasible"], suggestion
        return
    assert plan["chosen"]["num_gpus"] == gpus
    # Faster ones that are suggested are faster, a token.
    rate = plan["chosen"]["tokens_per_second_per_gpu"]
    for suggestion in suggested(capsys.readouterr().out):
        other = planned(tmp_path, *changed(words, suggestion))["chosen"]
        assert other["tokens_per_second_per_gpu"] > 1.05 * rate, suggestion


def test_eight_rows_on_24_gpus_become_nine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(tmp_path, "plan", "llama3.1-8b-1m", "--gpus", "24")
    assert plan["chosen"]["parallel"]["pipeline_model_parallel_size"] == 3
    assert suggested(capsys.readouterr().out) == [
        "--global-batch-size 9",
        "--seq-length 1048560",
    ]


def test_fewer_gpus_where_the_others_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "llama3.1-8b-1m", "--gpus", "24", "--pipeline-model-parallel-size", "1"]
    message = refusal(capsys, *words)
    assert "no layout of 24 GPUs is possible" in message
    assert "without --pipeline-model-parallel-size" in message
    assert "--global-batch-size 9" in suggested(message)
    assert ": use " not in message, "the rule's own fix has not been planned"
    words += ["--global-batch-size", "7", "--context-parallel-size", "2"]
    message = refusal(capsys, *words, "--tensor-model-parallel-size", "8")
    for suggestion in suggested(message):
        if suggestion.startswith("--"):
            new = [*changed(words, suggestion), "--tensor-model-parallel-size", "8"]
            assert planned(tmp_path, *new)["feasible"]


def test_a_given_layout_that_does_not_fit_names_flags_that_make_it_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "llama3.1-8b-1m", "--gpus", "8", "--no-search", "--context-parallel-size", "1"]
    (suggestion,) = suggested(refusal(capsys, *words))
    assert planned(tmp_path, *changed(words, suggestion))["chosen"]["num_gpus"] == 8


def test_stages_of_layers_that_do_not_divide() -> None:
    assert stage_ends(126, 16) == (7, 7)
    assert stage_ends(32, 4) == (0, 0)
    assert stage_ends(3, 2) == (2, 1)
    for layers, stages in itertools.product(range(2, 130), range(2, 33)):
        first, last = stage_ends(layers, stages)
        if not (first or last):
            assert layers % stages == 0 or layers < stages
            continue
        parallel = ParallelConfig(
            pipeline_model_parallel_size=stages,
            num_layers_in_first_pipeline_stage=first,
            num_layers_in_last_pipeline_stage=last,
        )
        found = parallel.stage_layers(layers)
        assert sum(found) == layers
        assert min(found) >= 1
        assert last <= first


def test_70b_on_eight_gpus_is_answered_with_its_optimizer_on_the_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "llama3.1-8b-1m", "--model", "llama3.1-70b", "--seq-length", "131072"]
    words += ["--gpus", "8", "--optimizer-cpu-offload"]
    plan = planned(tmp_path, *words)
    host, parameters = plan["chosen"]["host_bytes"], 70.55e9
    # Twelve bytes of states and four of pinned gradients, whose tensors are rounded up.
    assert 16 * parameters < host["optimizer"] < 17.5 * parameters
    shown = capsys.readouterr().out
    assert "NO CHECKPOINT FITS" in shown
    assert "fits with `--optimizer-offload-fraction 0.8`" in shown
    words += ["--optimizer-offload-fraction", "1"]
    planned(tmp_path, *words)
    shown = capsys.readouterr().out
    assert "take more nodes, or nodes of " in shown
    # Who wants to save is told before the run is.
    message = refusal(capsys, *words, "--save", "run")
    assert "the copy of a checkpoint being written" in message
    needed = re.findall(r"nodes of ([\d,]+) GiB", shown)[0].replace(",", "")
    plan = planned(tmp_path, *words, "--save", "run", "--host-memory-gib", str(int(needed) + 1))
    assert plan["feasible"]


def test_the_help_names_both_kinds_of_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["plan", "--help"])
    assert "llama3.1-8b-1m" in (shown := capsys.readouterr().out)
    assert "llama3.1-8b-sft" in shown
