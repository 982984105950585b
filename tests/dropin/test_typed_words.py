"""Slips of a command line that Megatron-LM would take for values, or for none."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from megatron_ultralong.dropin.arguments import add_ultralong_args, checked_words
from megatron_ultralong.program.errors import InputError
from tests.dropin.megatron_lm import needs_megatron_lm

needs_megatron_lm()

NAMES = (
    "--save",
    "--load",
    "--pretrained-checkpoint",
    "--data-path",
    "--tensorboard-dir",
)


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    from megatron.training.arguments import add_megatron_arguments

    return add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))


@pytest.mark.parametrize("flag", NAMES)
def test_an_empty_name_is_refused(parser: argparse.ArgumentParser, flag: str) -> None:
    for words in ([flag, "", "--bf16"], [f"{flag}="], [flag, "a", ""]):
        with pytest.raises(InputError, match=f"{flag}.* is empty, and must name something"):
            checked_words(parser, words)


def test_other_empty_words_stay(parser: argparse.ArgumentParser) -> None:
    words = ["", "--wandb-exp-name", "", "--config-logger-dir", "", "--bf16", "--other-dir", ""]
    assert checked_words(parser, words) == words


@pytest.mark.parametrize("word", ["\N{EM DASH}save", "\N{EN DASH}save", "-save", "---save"])
def test_another_dash_is_refused(parser: argparse.ArgumentParser, word: str) -> None:
    """Behind a flag of several values it was one of them, and nothing was saved."""
    with pytest.raises(InputError, match="does not begin with two hyphens: type --save"):
        checked_words(parser, ["--data-path", "rows", word, "run"])


def test_the_home_folder_stands_behind_an_equals_sign(
    parser: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py", "--save=~/run", "--bf16"])
    add_ultralong_args(parser)
    assert sys.argv == ["script.py", f"--save={Path.home()}/run", "--bf16"]
