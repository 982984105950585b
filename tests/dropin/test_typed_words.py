"""Slips of a command line that Megatron-LM would take for values, or for none."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import pytest

from megatron_ultralong.dropin.arguments import DropInConfig, add_ultralong_args, checked_words
from megatron_ultralong.dropin.rules import check_arguments, idle_notes
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


@pytest.mark.parametrize("values", [("0.3", "ra", "0.7", "rb"), ("ra", "rb")])
def test_a_blend_of_rows_is_told_how_it_is_made(
    parser: argparse.ArgumentParser, values: tuple[str, ...]
) -> None:
    """The rest was called unrecognized arguments."""
    with pytest.raises(
        InputError, match=f"{' '.join(values)}: it takes one folder, and no blend: `ul"
    ):
        checked_words(parser, ["--ultralong-data-path", *values, "--bf16"])
    words = ["--ultralong-data-path", "ra", "--bf16"]
    assert checked_words(parser, words) == words


@pytest.mark.parametrize("flag", ["--data-path", "--train-data-path", "--valid-data-path"])
@pytest.mark.parametrize("name", ["manifest.json", "chat_manifest.json"])
def test_a_folder_of_rows_is_not_for_megatron_lms_data_sets(
    parser: argparse.ArgumentParser, tmp_path: Path, flag: str, name: str
) -> None:
    (tmp_path / name).touch()
    field = flag[2:].replace("-", "_")  # as it is called where no run remembers its parser
    for words in ([tmp_path], ["0.3", tmp_path / "other", "0.7", tmp_path]):
        args = parser.parse_args([flag, *map(str, words)])
        with pytest.raises(InputError, match=f"{field} names {tmp_path}, a folder of rows"):
            check_arguments(DropInConfig(), args, ())
    check_arguments(DropInConfig(), parser.parse_args([flag, str(tmp_path / "train")]), ())


def test_arguments_without_effect_are_told_of(parser: argparse.ArgumentParser) -> None:
    config = DropInConfig(sequence_tile_size=32)
    args = parser.parse_args(["--fp8-format", "hybrid", "--transformer-impl", "local"])
    tiles, fp8 = idle_notes(config, args)
    assert tiles.startswith("warning: --ultralong-sequence-tile-size 32 is without effect: there ")
    assert fp8.startswith("warning: --fp8-format hybrid is without effect: --transformer-impl is l")
    config = dataclasses.replace(config, recompute_granularity="full")
    args = parser.parse_args(["--fp8-format", "hybrid", "--transformer-impl", "transformer_engine"])
    assert not list(idle_notes(config, args))
    assert not list(idle_notes(DropInConfig(), parser.parse_args(["--transformer-impl", "local"])))
