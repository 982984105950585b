"""The help of every verb: what is required, what comes first, and the flags that there are."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ultralong import cli
from megatron_ultralong.cli.dispatch import begin
from megatron_ultralong.cli.guides import GUIDES
from megatron_ultralong.cli.help import help_text
from megatron_ultralong.cli.verbs import VERBS, TrainingVerb, load
from megatron_ultralong.config import command_line
from megatron_ultralong.config.flags import flags_of
from megatron_ultralong.config.recipes import FOR_WHOM, RECIPES
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.plan.hardware import HARDWARE, hardware_by_name
from megatron_ultralong.plan.options import PlanConfig
from megatron_ultralong.program import progress as progress_bars
from megatron_ultralong.program.ending import NO_READER
from megatron_ultralong.program.errors import InputError, nearest
from megatron_ultralong.program.launch import take_ranks
from megatron_ultralong.program.progress import ProgressBar
from tests.docs.commands import commands
from tests.patience import patience

FLAG = re.compile(r"--[a-z][a-z0-9-]*[a-z0-9]")


def shown(*words: str) -> str:
    """What a command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        cli.main(words)
    return out.getvalue()


def default_of(verb: str) -> object:
    """Options of a verb that begins with a recipe."""
    recipes = cli.VERBS[verb].recipes
    if not recipes:
        return None
    run = next(iter(load(recipes).values()))()
    return PlanConfig(run) if verb == "plan" else run


def parsers_flags(verb: str) -> set[str]:
    """The flags that the parser takes, by its own help; positional arguments are left out."""
    if verb == "doctor":
        from megatron_ultralong.doctor.diagnosis import parse

        call = lambda: parse(["--help"])  # noqa: E731
    else:
        options, default = load(cli.VERBS[verb].options), default_of(verb)
        call = lambda: command_line.parse(options, verb, ["--help"], default)  # noqa: E731
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        call()
    lines = [line.strip("│ ") for line in out.getvalue().splitlines()]
    return {flag for line in lines if line.startswith("-") for flag in FLAG.findall(line)}


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_help_has_the_parsers_flags(verb: str) -> None:
    flags = flags_of(load(cli.VERBS[verb].options), default_of(verb))
    actual = {name for flag in flags for name in FLAG.findall(flag.usage)}
    assert actual - {"--help"} == parsers_flags(verb) - {"--help"}
    assert actual == {n for flag in flags for n in flag.names if n.startswith("--")}
    assert all(flag.text for flag in flags), "every flag is described"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_needs_no_second_call(verb: str) -> None:
    text = shown("help", *verb.split())
    assert text == shown(*verb.split(), "--help") == shown(*verb.split(), "-h")
    assert text == shown("--help", *verb.split())
    first, *second = verb.split()
    assert text == shown(first, "--help", *second)
    everything = shown(*verb.split(), "--help-all")
    for flag in flags_of(load(cli.VERBS[verb].options), default_of(verb)):
        name = flag.usage.split()[0].rstrip(",")
        assert name in text
        assert f"\n  {flag.usage}" in everything
    for part in (text, everything):
        assert "(default: '')" not in part
        assert "(default: )" not in part
        assert part.startswith(f"usage: ultralong {verb}")
        assert max(map(len, part.splitlines())) <= 100
    order = [text.find(f"\n{title}") for title in ("Examples:", "Required:", "Common:", "More")]
    assert order[0] > 0
    found = [place for place in order if place > 0]
    assert found == sorted(found)


def test_what_is_common_is_there() -> None:
    assert set(GUIDES) == set(cli.VERBS)
    for verb, guide in GUIDES.items():
        fields = {flag.field for flag in flags_of(load(cli.VERBS[verb].options), default_of(verb))}
        assert set(guide.common) <= fields, verb


@pytest.mark.parametrize(
    ("verb", "example"), [(verb, text) for verb, guide in GUIDES.items() for text in guide.examples]
)
def test_examples_are_complete(verb: str, example: str) -> None:
    """Each parses, and has all that is required."""
    (command,) = [found for found in commands(example) if found.verb != "torchrun"]
    assert command.verb == verb
    text = re.sub(r"\\\n\s*", "", example).split("megatron_ultralong")[-1].split("ultralong ")[-1]
    import shlex

    words = shlex.split(text)[len(verb.split()) :]
    if verb == "doctor":
        assert not words
        return
    options, default = load(cli.VERBS[verb].options), None
    _, words = take_ranks(words)
    if words[0] == "--config":
        words = [*words[2:], *("--load", "base", "--data-path", "rows")]
        default = default_of(verb)
    elif cli.VERBS[verb].recipes:
        default, words = begin(verb, words, RECIPES, TrainingConfig)
        default = PlanConfig(default) if verb == "plan" else default
    if isinstance(cli.VERBS[verb], TrainingVerb):
        words = [word for word in words if word != "--dry-run"]
    command_line.parse(options, verb, words, default)


def test_a_recipes_values_are_the_defaults() -> None:
    assert "(default: 1048576)" in shown("pretrain", "llama3.1-8b-1m", "--help")
    assert "(default: 1048576)" in shown("plan", "llama3.1-8b-1m", "--help")
    assert "(default: 1048576)" not in shown("pretrain", "--help")
    for verb in ("pretrain", "plan"):
        text = " ".join(shown(verb, "--help-all").split())
        assert "or for sft by num_epochs. [at least 0] (default: the recipe's)" in text
        assert "Rows in one forward pass of a replica. [at least 1] (default: 1)" in text


def test_required_is_marked_where_it_is() -> None:
    assert "--load TEXT  (required)" in shown("pretrain", "--help")
    plan = shown("plan", "--help-all")
    assert "--gpus N  (required)" in plan
    assert plan.count("(required)") == 1, "a plan needs neither weights nor rows"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("pretran", "pretrain"),
        ("rulr", "evaluate ruler"),
        ("PREPARE", "prepare"),
        ("lv_eval", "evaluate lv-eval"),
        ("xyzzy", None),
    ],
)
def test_the_nearest_verb(given: str, meant: str | None) -> None:
    assert nearest(given, cli.VERBS) == meant


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("evaluate", "rulr"), "ruler"),
        (("plan", "8b-1n", "--gpus", "8"), "llama3.1-8b-1m"),
        (("sft", "llama3.1-8b", "--help"), "llama3.1-8b-sft"),
        (("plan", "demo-cpu", "--gpus", "8", "--gpu", "H100"), "h100-80gb"),
        (("plan", "demo-cpu", "--gpus", "8", "--model", "llama-3.1-8b"), "llama3.1-8b"),
    ],
)
def test_perhaps_you_meant(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], meant: str
) -> None:
    with pytest.raises(SystemExit):
        cli.main(words)
    assert f"is not known; perhaps you meant {meant!r}; known: " in capsys.readouterr().err


def test_every_gpu_is_nearest_to_itself() -> None:
    for name in HARDWARE:
        assert nearest(name.upper(), HARDWARE) == name
    with pytest.raises(InputError, match="perhaps you meant 'b200-180gb'"):
        hardware_by_name("b200")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["pretrain", "--help-all"],
        ["doctor", "--no-communication"],
        ["plan", "llama3.1-8b-1m", "--gpus", "64", "--no-search"],
    ],
)
def test_output_that_nobody_reads_ends_quietly(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "megatron_ultralong", *words],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=patience(120),
        check=False,
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == NO_READER


def test_work_goes_on_where_nobody_reads_its_lines(tmp_path: Path) -> None:
    lines = (
        "import os, sys",
        "from megatron_ultralong.program.progress import progress",
        "with progress('x', 3) as bar:",
        "    for _ in range(3):",
        "        bar.print('line' * 1000)",
        "        bar.advance()",
        f"open({str(tmp_path / 'done')!r}, 'w').close()",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    reading, writing = os.pipe()
    os.close(reading)
    subprocess.run(command, stdout=writing, stderr=writing, timeout=patience(60), check=True)
    os.close(writing)
    assert (tmp_path / "done").is_file()


def test_a_bar_shows_what_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar("training", 150, "iterations", 20)
    bar.advance(5, status="loss 2.3456, 12,345 tokens/s")
    bar.stop()
    line = capsys.readouterr().err
    assert line.startswith("training:  17% (25/150 iterations), loss 2.3456, 12,345 tokens/s, ")


def test_a_log_has_the_last_line_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_bars, "LOG_INTERVAL", 0.0)
    bar = ProgressBar("Loss", 2, "rows")
    bar.advance()
    bar.advance()
    bar.stop()
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Loss:  50%")
    assert last.startswith("Loss: 100%")


def test_help_of_a_broken_default_is_not_shown() -> None:
    text = help_text("pretrain", load("config.training:PretrainConfig"), None, ["small"])
    assert "Recipes:\n  small  the same for" in text


@pytest.mark.parametrize("verb", ["pretrain", "sft", "plan"])
def test_every_recipe_says_whom_it_is_for(verb: str) -> None:
    assert set(FOR_WHOM) == set(RECIPES)
    text = shown(verb, "--help")
    names = re.findall(r"^  ([a-z][a-z0-9.-]*)  +\S", text.partition("Recipes:")[2], re.M)
    verbs_own = load(VERBS[verb].recipes)
    assert names[: len(verbs_own)] == list(verbs_own)
    for name in verbs_own:
        assert re.search(rf"^  {re.escape(name)}  +{re.escape(FOR_WHOM[name][:40])}", text, re.M)


def test_what_the_program_is_for_heads_its_own_help_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words, is_whole in (((), True), (("evaluate",), False), (("convert",), False)):
        cli.main([*words, "--help"])
        assert ("Extend Llama 3.1 models" in capsys.readouterr().out) == is_whole
