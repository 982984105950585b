"""Every number of every verb has a range: inside it is taken, outside it is refused, by name.

The verbs are those of the command line, their flags the fields of their configurations, so a new
flag of numbers without a range fails here.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest

import megatron_ultralong
from megatron_ultralong import cli
from megatron_ultralong.config.recipes import PRETRAIN_RECIPES, SFT_RECIPES
from megatron_ultralong.config.training import PretrainConfig, SftConfig
from megatron_ultralong.dropin.arguments import DropInConfig
from megatron_ultralong.plan.hardware import HARDWARE
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import (
    INT32,
    Number,
    Range,
    check_number,
    check_ranges,
    numbers_of,
)
from tests.command_line import refusal
from tests.edges import (
    RECIPES,
    every_number,
    flags,
    inside,
    name_of,
    nested_classes,
    outside,
    parse,
    parsed_class,
    values_of,
    with_needed,
)
from tests.patience import patience

PACKAGE = Path(megatron_ultralong.__file__).parent


def test_every_verb_is_looked_at() -> None:
    assert all(dataclasses.is_dataclass(parsed_class(verb)) for verb in cli.VERBS)
    assert parsed_class("pretrain") is PretrainConfig
    assert parsed_class("sft") is SftConfig
    names = {name_of(pair) for pair in every_number()}
    assert {"OptimizerConfig.lr", "NeedleConfig.depths", "DoctorConfig.megabytes"} <= names


def test_rules_are_checked_behind_the_command_line() -> None:
    """What ``__post_init__`` raises, tyro shows as a text that cannot be read."""
    classes = {cls for verb in cli.VERBS for cls in nested_classes(parsed_class(verb))}
    assert not [cls.__name__ for cls in classes if hasattr(cls, "__post_init__")]


def test_a_number_without_a_range_is_named() -> None:
    without = [name_of(pair) for pair in every_number() if pair[1].range is None]
    assert not without, f"without Annotated[..., Range(...)]: {', '.join(without)}"


def test_the_configurations_of_the_package_are_all_looked_at() -> None:
    """A dataclass of options that no verb reaches, as of another entry, is looked at too."""
    looked_at = {cls for cls, _ in every_number()}
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"^class (\w+(?:Config|Flags|Options))\b", text, flags=re.MULTILINE)
        if not names:
            continue
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for name in names:
            cls = getattr(importlib.import_module(module), name)
            if dataclasses.is_dataclass(cls) and numbers_of(cls):
                is_base = any(issubclass(one, cls) for one in looked_at)
                assert is_base, (
                    f"{module}.{name} is not a verb's, and its numbers are not looked at"
                )


@pytest.mark.parametrize(("cls", "number"), every_number(), ids=map(name_of, every_number()))
def test_each_edge(cls: Any, number: Number) -> None:
    def check(value: Any) -> None:
        check_number(cls, number, (value,) if number.is_tuple else value)

    for value in inside(number):
        check(value)
    for value in outside(number):
        with pytest.raises(InputError) as refusal:
            check(value)
        message = str(refusal.value)
        if value != 10**400:
            assert f"not {value!r}" in message
        flag = "--" + number.name.replace("_", "-")
        assert f"{number.name} must be " in message
        way_out = re.search(rf": .+; use {flag} (a number )?(above|below)? ?([-+.\de]+)", message)
        assert way_out, message
        bound = int(way_out.group(3)) if number.is_whole else float(way_out.group(3))
        assert number.range is not None
        assert bound in (
            number.range.least,
            number.range.most,
            number.range.above,
            number.range.below,
        )
        if not way_out.group(2):
            check(bound)  # what is offered is taken
    wrong = [True, "1", None, [1], 1 + 1j]
    for value in wrong if not number.is_optional else [True, "1", 1 + 1j]:
        with pytest.raises(InputError, match=r"must be a (whole )?number"):
            check(value)


def typed(number: Number, value: Any) -> list[str]:
    return ["--" + number.name.replace("_", "-"), str(value)]


def a_flag_of_each_class() -> list[tuple[str, Number]]:
    """One number of every dataclass of flags, by one of the verbs that have it."""
    verbs = sorted(cli.VERBS, key=lambda verb: -len(flags(verb)))  # the quickest one remains
    found = {cls: (verb, number) for verb in verbs for cls, number in flags(verb)}
    return list(found.values())


def expected(number: Number, value: Any) -> Any:
    return (value,) if number.is_tuple else value


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if flags(verb)])
def test_the_edges_of_a_verb_on_its_command_line(verb: str) -> None:
    """All its flags at their first numbers, then at their last."""
    for edge in (0, 1):
        values = {pair: inside(pair[1])[edge] for pair in flags(verb)}
        words = [word for (_, number), value in values.items() for word in typed(number, value)]
        config = parse(verb, with_needed(verb, words))
        for (cls, number), value in values.items():
            assert set(values_of(config, cls, number.name)) == {expected(number, value)}


def test_flags_are_refused_on_a_command_line() -> None:
    """Behind their last number."""
    for verb, number in a_flag_of_each_class():
        check_refused(verb, number, outside(number)[1])


@pytest.mark.faults
@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_flag_of_each_verb_is_refused_on_its_command_line(verb: str) -> None:
    for _, number in flags(verb):
        for value in outside(number):
            if value != 10**400:
                check_refused(verb, number, value)


def check_refused(verb: str, number: Number, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{number.name} must be .*; use --"):
        parse(verb, with_needed(verb, typed(number, value)))


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize("verb", ["pretrain", "sft"])
def test_a_training_is_refused_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], verb: str, more: tuple[str, ...]
) -> None:
    words = (verb, RECIPES[verb], "--load", "nowhere", "--data-path", "nowhere", *more)
    for flag, value in (("--lr", "-1"), ("--lr", "nan"), ("--adam-beta2", "1.5"), ("--seed", "-1")):
        assert f"use {flag} " in refusal(capsys, *words, flag, value)


def test_rules_between_rates_are_seen_in_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("pretrain", "demo-cpu", "--load", "nowhere", "--data-path", "nowhere", "--dry-run")
    error = refusal(capsys, *words, "--context-parallel-size", "1", "--min-lr", "0.5")
    assert "min_lr (0.5) must be at most lr (0.0003)" in error


def test_a_refusal_does_not_load_torch() -> None:
    program = (
        "import sys\nfrom megatron_ultralong import cli\n"
        "needed = ['--load', 'l', '--data-path', 'd']\n"
        "for verb in (['pretrain', 'demo-cpu'], ['sft', 'demo-sft-cpu'],\n"
        "             ['plan', 'demo-cpu', '--gpus', '2']):\n"
        "    try:\n        cli.main([*verb, '--lr', '-1', *needed])\n"
        "    except SystemExit as end:\n        assert end.code == 2\n"
        "    assert 'torch' not in sys.modules, verb\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=patience(120),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("lr must be between 0 and 1, not -1.0") == 3


def test_the_help_of_a_flag_has_its_range(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["pretrain", "demo-cpu", "--help-all"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Rows in one forward pass of a replica. [at least 1] (default: 1)" in shown
    assert shown.count("Adam, its schedule and gradient clipping:") == 1
    for _, number in flags("pretrain"):
        assert number.range is not None
        assert f"[{number.range.text()}]" in shown


@pytest.mark.parametrize("name", [*PRETRAIN_RECIPES, *SFT_RECIPES])
def test_recipes_are_in_their_ranges(name: str) -> None:
    check_ranges({**PRETRAIN_RECIPES, **SFT_RECIPES}[name]())


def test_the_drop_in_has_the_same_ranges() -> None:
    for config, message in (
        (DropInConfig(sequence_tile_size=-1), "use --ultralong-sequence-tile-size 0 or more"),
        (
            DropInConfig(attention_factor=math.nan),
            "ultralong_attention_factor must be between 0.01 and 100",
        ),
        (DropInConfig(rope_scaling_factor=0.5), "use --ultralong-rope-scaling-factor 1 or more"),
    ):
        with pytest.raises(InputError, match=message):
            config.check(1)


def test_named_hardware_is_in_its_ranges() -> None:
    for hardware in HARDWARE.values():
        check_ranges(hardware)


def test_texts_of_ranges() -> None:
    assert Range(1).text() == "at least 1"
    assert Range(1).text(INT32 + 1) == f"between 1 and {INT32}"
    assert Range(0, 100).text() == "between 0 and 100"
    assert Range(above=0, most=1).text() == "above 0 and at most 1"
    assert Range(0, below=1).text() == "at least 0 and below 1"
    assert Range(2, or_zero=True).text() == "0, or at least 2"


def test_a_field_without_docstring_has_a_message() -> None:
    @dataclasses.dataclass
    class Bare:
        width: Annotated[int, Range(1, 4)] = 0

    number = Number("width", Range(1, 4), is_whole=True)
    with pytest.raises(InputError, match=r"width must be between 1 and 4, not 5: .*--width 4 or l"):
        check_number(Bare, number, 5)
