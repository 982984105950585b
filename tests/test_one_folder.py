"""Rows are one folder: blends, as Megatron-LM has them, and the arguments of its data sets."""

from __future__ import annotations

import pytest

from megatron_ultralong.cli.verbs import VERBS, load
from megatron_ultralong.config.flags import flags_of
from megatron_ultralong.config.parser_errors import INSTEAD
from tests.command_line import refusal

BLENDS = [
    (["--data-path", "a", "b"], "a b"),
    (["--data-path", "0.3", "a", "0.7", "b"], "0.3 a 0.7 b"),
    (["--data_path", "0.3", "a"], "0.3 a"),
    (["--data-path=a", "b"], "a b"),
    (["--data-path=0.3", "a", "0.7", "b", "--seed", "2"], "0.3 a 0.7 b"),
]
OF_DATA = [
    verb
    for verb, its in VERBS.items()
    if not its.takes_words
    and any("--data-path" in one.names for one in flags_of(load(its.options)))
]


@pytest.mark.parametrize("verb", OF_DATA)
@pytest.mark.parametrize(("words", "values"), BLENDS)
def test_a_blend_is_told_how_it_is_made(
    capsys: pytest.CaptureFixture[str], verb: str, words: list[str], values: str
) -> None:
    """Wherever the recipe stands, and without one."""
    assert len(OF_DATA) >= 4
    recipe = {"pretrain": "llama3.1-8b-1m", "sft": "llama3.1-8b-sft"}.get(verb)
    for line in ([*words, "--load", "x"], ["--load", "x", *words]):
        lines = [line, [recipe, *line], [*line, recipe]] if recipe else [line]
        for each in lines:
            said = refusal(capsys, *verb.split(), *each)
            assert f"--data-path {values}: it takes one folder, and no blend: `ultralong pr" in said


@pytest.mark.parametrize("recipe", ["llama3.1-8b-1M", "llama3.1-8b-1", "llama31-8b-1m", "1m"])
def test_a_recipe_behind_a_folder_that_is_misspelt(
    capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    said = refusal(capsys, "pretrain", "--load", "x", "--data-path", "rows", recipe)
    assert f"recipe {recipe!r} is not known" in said


@pytest.mark.parametrize("verb", ["pretrain llama3.1-8b-1m", "sft llama3.1-8b-sft"])
@pytest.mark.parametrize("flag", INSTEAD)
def test_arguments_of_megatron_lms_data_sets(
    capsys: pytest.CaptureFixture[str], verb: str, flag: str
) -> None:
    for typed in (flag, flag.replace("-", "_").replace("__", "--")):
        said = refusal(capsys, *verb.split(), "--load", "x", typed, "x")
        assert f"{typed} is not known: {INSTEAD[flag]}" in said
