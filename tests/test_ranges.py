"""Every number of every verb has a range: inside it is taken, outside it is refused, by name.

The verbs are those of the command line, their flags the fields of their configurations, so a new
flag of numbers without a range fails here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import pytest

from megatron_ultralong import cli
from megatron_ultralong.config import PretrainConfig, from_dict, to_dict
from megatron_ultralong.doctor import diagnosis
from megatron_ultralong.dropin.config import DropInConfig
from megatron_ultralong.errors import InputError
from megatron_ultralong.model_config import ModelConfig
from megatron_ultralong.plan.hardware import HARDWARE, Hardware
from megatron_ultralong.ranges import (
    INT32,
    Number,
    Range,
    check_number,
    check_ranges,
    nested_classes,
    numbers_of,
)
from megatron_ultralong.recipes import PRETRAIN_RECIPES, SFT_RECIPES
from megatron_ultralong.sft_config import SftConfig
from megatron_ultralong.training.run_folder import load_config
from megatron_ultralong.yarn import LinearConfig, NtkConfig, YarnConfig

PACKAGE = Path(cli.__file__).parent
RECIPES = {"pretrain": "demo-cpu", "plan": "demo-cpu", "sft": "demo-sft-cpu"}
NEEDED = {
    "prepare": ("--source", "a=b", "--tokenizer", "t", "--output", "o", "--seq-length", "8"),
    "prepare chat": ("--source", "a=b", "--tokenizer", "t", "--output", "o"),
    "convert import": ("a", "b"),
    "convert export": ("a", "b"),
    "convert verify": ("a", "b"),
    "convert inspect": ("a",),
    "plan": ("--gpus", "8"),
}
"""What a verb cannot be parsed without."""
FROM_FILES = (Hardware, ModelConfig, YarnConfig, NtkConfig, LinearConfig)
"""Classes whose numbers are never flags, but stand in files."""


class ParsedError(Exception):
    """Ends a verb where its command line has been read."""


@functools.cache
def parsed_class(verb: str) -> Any:
    """The configuration that the verb's flags are made of, as the verb itself asks for it."""
    found: list[Any] = []

    def parse(config_class: Any, verb: str, words: list[str], default: Any = None) -> Any:
        found.append(config_class)
        raise ParsedError

    def diagnose(config: Any) -> Any:
        found.append(type(config))
        raise ParsedError

    words = [RECIPES[verb]] if verb in RECIPES else []
    with (
        mock.patch.object(cli, "_parse", parse),
        mock.patch.object(diagnosis, "diagnose", diagnose),
        pytest.raises(ParsedError),
    ):
        cli._VERBS[verb][1](verb, words)
    (config_class,) = found
    return config_class


@functools.cache
def flags(verb: str) -> tuple[tuple[Any, Number], ...]:
    """Class and number of every numeric flag of a verb."""
    classes = nested_classes(parsed_class(verb))
    return tuple((cls, number) for cls in classes for number in numbers_of(cls))


def every_number() -> list[tuple[Any, Number]]:
    """Those of all verbs, of the drop-in and of files; each once."""
    found = [pair for verb in cli._VERBS for pair in flags(verb)]
    for cls in (DropInConfig, *FROM_FILES):
        found += [(cls, number) for number in numbers_of(cls)]
    return list(dict.fromkeys(found))


def name_of(pair: tuple[Any, Number]) -> str:
    return f"{pair[0].__name__}.{pair[1].name}"


def inside(number: Number) -> list[Any]:
    """The first and last numbers that a field takes, and what else it takes."""
    its = number.range
    assert its is not None
    step = 1 if number.is_whole else 0
    low: Any = its.least if its.above is None else its.above + step
    high: Any = its.most if its.below is None else its.below - step
    if not number.is_whole:
        low = low if its.above is None else math.nextafter(low, math.inf)
        high = high if its.below is None else math.nextafter(high, -math.inf)
    zero = [0] if its.or_zero else []
    return [low, high, *zero, *number.words, *([None] if number.is_optional else [])]


def outside(number: Number) -> list[Any]:
    """Just before the first, just behind the last, and what is in no range."""
    its = number.range
    assert its is not None
    low: Any = its.least if its.above is None else its.above
    high: Any = its.most if its.below is None else its.below
    if number.is_whole:
        found = [low - 1, high + 1, 2**63, 10**400]
    else:
        low = math.nextafter(low, -math.inf) if its.above is None else low
        high = math.nextafter(high, math.inf) if its.below is None else high
        found = [low, high, -1.0, math.nan, math.inf, -math.inf]
    return [value for value in found if not (its.or_zero and value == 0)]


def test_every_verb_is_looked_at() -> None:
    assert all(dataclasses.is_dataclass(parsed_class(verb)) for verb in cli._VERBS)
    assert parsed_class("pretrain") is PretrainConfig
    assert parsed_class("sft") is SftConfig
    names = {name_of(pair) for pair in every_number()}
    assert {"OptimizerConfig.lr", "NeedleConfig.depths", "DoctorConfig.megabytes"} <= names


def test_rules_are_checked_behind_the_command_line() -> None:
    """What ``__post_init__`` raises, tyro shows as a text that cannot be read."""
    classes = {cls for verb in cli._VERBS for cls in nested_classes(parsed_class(verb))}
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
                assert is_base, f"{module}.{name} is no verb's, and its numbers are not looked at"


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


def parse(verb: str, words: list[str]) -> Any:
    """As the verb does, without doing it."""
    if verb == "doctor":
        config = diagnosis.parse(words)
        check_ranges(config)
        return config
    default = None
    if verb == "plan":
        default = parsed_class(verb)(PRETRAIN_RECIPES[RECIPES[verb]]())
    elif verb in RECIPES:
        default = {**PRETRAIN_RECIPES, **SFT_RECIPES}[RECIPES[verb]]()
    return cli._parse(parsed_class(verb), verb, words, default)


def values_of(config: Any, cls: Any, name: str) -> Iterator[Any]:
    """The value of a field in the part of a configuration that is a ``cls``."""
    if type(config) is cls:
        yield getattr(config, name)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from values_of(value, cls, name)


def a_flag_of_each_class() -> list[tuple[str, Number]]:
    """One number of every dataclass of flags, by one of the verbs that have it."""
    verbs = sorted(cli._VERBS, key=lambda verb: -len(flags(verb)))  # the quickest one remains
    found = {cls: (verb, number) for verb in verbs for cls, number in flags(verb)}
    return list(found.values())


def expected(number: Number, value: Any) -> Any:
    return (value,) if number.is_tuple else value


@pytest.mark.parametrize("verb", [verb for verb in cli._VERBS if flags(verb)])
def test_the_edges_of_a_verb_on_its_command_line(verb: str) -> None:
    """All its flags at their first numbers, then at their last."""
    for edge in (0, 1):
        values = {pair: inside(pair[1])[edge] for pair in flags(verb)}
        words = [word for (_, number), value in values.items() for word in typed(number, value)]
        config = parse(verb, [*NEEDED.get(verb, ()), *words])
        for (cls, number), value in values.items():
            assert set(values_of(config, cls, number.name)) == {expected(number, value)}


def test_flags_are_refused_on_a_command_line() -> None:
    """Behind their last number."""
    for verb, number in a_flag_of_each_class():
        check_refused(verb, number, outside(number)[1])


@pytest.mark.faults
@pytest.mark.parametrize("verb", cli._VERBS)
def test_each_flag_of_each_verb_is_refused_on_its_command_line(verb: str) -> None:
    for _, number in flags(verb):
        for value in outside(number):
            if value != 10**400:
                check_refused(verb, number, value)


def check_refused(verb: str, number: Number, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{number.name} must be .*; use --"):
        parse(verb, [*NEEDED.get(verb, ()), *typed(number, value)])


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that must be refused."""
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("ultralong: error: ")
    assert error.count("\n") == 1, "one message, no traceback"
    return error


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
        "for verb in (['pretrain', 'demo-cpu'], ['sft', 'demo-sft-cpu'],\n"
        "             ['plan', 'demo-cpu', '--gpus', '2']):\n"
        "    try:\n        cli.main([*verb, '--lr', '-1'])\n"
        "    except SystemExit as end:\n        assert end.code == 2\n"
        "    assert 'torch' not in sys.modules, verb\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("lr must be between 0 and 1, not -1.0") == 3


def test_the_help_of_a_flag_has_its_range(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "demo-cpu", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Rows in one forward pass of a replica. [at least 1] (default: 1)" in shown
    assert shown.count("Adam, its schedule and gradient clipping.") == 1
    for _, number in flags("pretrain"):
        assert number.range is not None
        assert f"[{number.range.text()}]" in shown


@pytest.mark.parametrize("name", [*PRETRAIN_RECIPES, *SFT_RECIPES])
def test_recipes_are_in_their_ranges(name: str) -> None:
    check_ranges({**PRETRAIN_RECIPES, **SFT_RECIPES}[name]())


def test_the_drop_in_has_the_same_ranges() -> None:
    for config, message in (
        (DropInConfig(sequence_tile_size=-1), "use --ultralong-sequence-tile-size 0 or more"),
        (DropInConfig(attention_factor=math.nan), "ultralong_attention_factor must be above 0"),
        (DropInConfig(rope_scaling_factor=0.5), "use --ultralong-rope-scaling-factor 1 or more"),
    ):
        with pytest.raises(InputError, match=message):
            config.check(1)


def test_named_hardware_is_in_its_ranges() -> None:
    for hardware in HARDWARE.values():
        check_ranges(hardware)


def key_paths(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from key_paths(value, (*path, key))
        else:
            yield (*path, key)


def with_value(values: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    first, *rest = path
    inner = with_value(values[first], tuple(rest), value) if rest else value
    return {**values, first: inner}


RUNS = {PretrainConfig: "llama3.1-8b-1m", SftConfig: "llama3.1-8b-sft"}


@pytest.mark.parametrize("kind", RUNS)
def test_each_number_of_a_file(kind: Any) -> None:
    """What stands in a file is of the field's type and in its range."""
    resolved = to_dict({**PRETRAIN_RECIPES, **SFT_RECIPES}[RUNS[kind]]())
    numbers = {number.name: number for cls in nested_classes(kind) for number in numbers_of(cls)}
    if kind is PretrainConfig:
        numbers["train_iters"] = next(n for n in numbers_of(kind) if n.name == "train_iters")
    for path in key_paths(resolved):
        if path[-1] not in numbers:
            continue
        number = numbers[path[-1]]
        named = "run.yaml: " + re.escape(".".join(path))
        wrong: list[Any] = [True, "1", {}, "1e-5", *([1.5] if number.is_whole else [])]
        for value in [*outside(number), *wrong, *([] if number.is_optional else [None])]:
            for one in ([value], (value,)) if number.is_tuple else (value,):
                with pytest.raises(InputError, match=named):
                    from_dict(kind, with_value(resolved, path, one), "run.yaml")
        for value in inside(number):
            one = [value] if number.is_tuple else value
            from_dict(kind, with_value(resolved, path, one), "run.yaml")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('optimizer: {lr: "1e-5"}', r"optimizer\.lr must be a number, not '1e-5': .*without quot"),
        ("optimizer: {lr: .nan}", r"optimizer\.lr must be between 0 and 1, not nan: .*; write 0 o"),
        ("optimizer: {lr: 1:30}", r"optimizer\.lr must be a number, not '1:30'"),
        ("optimizer: 3", r"optimizer must be a block of keys and values, not 3"),
        ("optimizer: {lr: 1e-5, lr: 1e-4}", r"key 'lr' stands there twice"),
        ("data: {seed: true}", r"data\.seed must be a whole number, not True"),
        ("data: {document_mask: no}", r"data\.document_mask must be one of 'none', 'block', not F"),
        ("train_iters: 1e2", r"train_iters must be a whole number, not 100\.0"),
        ("log: {profile_ranks: [0, -1]}", r"log\.profile_ranks must be at least 0, not -1"),
        ("log: {profile_ranks: [0, x]}", r"profile_ranks\[1\] must be a whole number, not 'x'"),
        ("save: 3", r"save must be text, not 3"),
        ("rope: {rope_scaling: yarn, attention_factor: hot}", r"a number or one of 'yarn', not 'h"),
        ("1: 2", r"unknown keys \['1'\]"),
        ("[1, 2]", "is not a configuration: it holds list"),
        ("[" * 10_000, "is not YAML: "),
        ("train_iters: " + "9" * 5000, "is not YAML: Exceeds the limit"),
        ("? [a]\n: 1", "is not YAML"),
        ("a: &a [1]\nb: *b", "is not YAML"),
        ("load: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_what_a_file_cannot_hold(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "run.yaml", text)
    with pytest.raises(InputError, match=message) as refusal:
        load_config(path, PretrainConfig)
    assert str(path) in str(refusal.value)


def test_numbers_of_a_file_are_read_as_they_are_meant(tmp_path: Path) -> None:
    text = "optimizer: {lr: 1e-5, adam_eps: 1E-9, min_lr: 0}\ndata: {seed: 010}\n"
    config = load_config(write(tmp_path / "run.yaml", text), PretrainConfig)
    assert config.optimizer.lr == 1e-5
    assert config.optimizer.adam_eps == 1e-9
    assert config.data.seed == 10


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", "#" * 2**19)
    with pytest.raises(InputError, match=r"has 524288 bytes, and at most 262144 are read"):
        load_config(path, PretrainConfig)


def test_whatever_a_file_holds_it_is_read_or_refused() -> None:
    """A seeded fuzzer: no other exception, and nothing that its field cannot hold."""
    random_ = random.Random(17)
    resolved = to_dict(PRETRAIN_RECIPES["llama3.1-8b-1m"]())
    paths = list(key_paths(resolved))
    pool: list[Any] = [0, -1, 1, 2**31, 2**63, 0.5, math.nan, math.inf, True, None, "", "x", "1e-5"]
    pool += [[], {}, [0], [None], {"a": 1}, [[1]], "none", "keep", "yarn", "block", 1e308, -0.0]
    num_read = 0
    for _ in range(300):
        values = resolved
        for path in random_.sample(paths, random_.randint(1, 3)):
            values = with_value(values, path, random_.choice(pool))
        with contextlib.suppress(InputError):
            config = from_dict(PretrainConfig, values, "run.yaml")
            num_read += 1
            check_ranges(config)
            assert from_dict(PretrainConfig, to_dict(config)) == config
    assert 5 < num_read < 150


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
