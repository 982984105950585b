"""A recipe, or ``--config FILE``, is found wherever it stands among the flags."""

from __future__ import annotations

import itertools

import pytest

from megatron_ultralong.cli.start_of_run import with_start_first
from megatron_ultralong.cli.verbs import VERBS, load
from tests.command_line import refusal

GROUPS = (
    ["--seq-length", "8K"],
    ["--lr=1e-4"],
    ["--sequence-parallel"],
    ["--no-tensorboard"],
    ["--profile-ranks", "0", "1"],
    ["--load", "small"],
    ["--save=extend"],
    ["--dry-run"],
    ["--data_path", "rows"],
)
"""Flags of every kind, and folders with the names of recipes."""
STARTED = [name for name, verb in VERBS.items() if verb.recipes]


@pytest.mark.parametrize("verb", STARTED)
def test_a_start_anywhere_is_as_one_in_front(verb: str) -> None:
    starts = [[recipe] for recipe in load(VERBS[verb].recipes)] + [["--config", "run/config.yaml"]]
    for shift, start in itertools.product(range(len(GROUPS)), starts):
        groups = [*GROUPS[shift:], *GROUPS[:shift]]
        for place in range(len(groups) + 1):
            words = [*groups[:place], start, *groups[place:]]
            found = with_start_first(verb, VERBS[verb], list(itertools.chain(*words)))
            assert found == [*start, *itertools.chain(*groups)]
    joined = with_start_first(verb, VERBS[verb], ["--lr", "1", "--config=a.yaml"])
    assert joined == ["--config", "a.yaml", "--lr", "1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pretrain small --load base --config c.yaml", "small and --config c.yaml each say what"),
        ("sft --config a --lr 1 --config b", "--config a and --config b each say what the run"),
        ("plan --gpus 8 small extend", "small and extend each say what the run starts from: give"),
        ("pretrain --load base llama3.1-8b-sft", "llama3.1-8b-sft is a recipe of `ultralong sft`"),
        ("plan --gpus 8 llama3.1-8b-1n", "perhaps you meant 'llama3.1-8b-1m'; known: "),
        (
            "plan --gpus 8 llama3.1-8b",
            "is a model, and no recipe: write `ultralong plan extend --m",
        ),
        (
            "plan llama3.1-8b-512k --gpus 8",
            "demo-sft-cpu; for rows of any length: `ultralong plan extend --seq-length 512K`",
        ),
        ("pretrain --help-al", "--help-al is not known; perhaps you meant --help-all; see"),
        ("pretrain --load base --sav run", "--sav is not known; perhaps you meant --save; see"),
        ("pretrain --load base --lr 1", "no recipe given: write `ultralong pretrain RECIPE --load"),
        ("pretrain --config --lr 1", "--config needs a file"),
        ("pretrain small base", "'base': no flag takes it; perhaps you meant --load base"),
    ],
)
def test_what_is_said_of_no_start_or_two(
    capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    assert message in refusal(capsys, *line.split())


def test_the_help_is_of_the_recipe_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    from megatron_ultralong import cli

    texts = []
    for words in (["demo-cpu", "--help"], ["--help", "demo-cpu"], ["--help"]):
        cli.main(["pretrain", *words])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
