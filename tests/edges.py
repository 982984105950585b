"""Every number that a user can give, and numbers at the edges of its range."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Iterator
from typing import Any

from megatron_ultralong import cli
from megatron_ultralong.cli.verbs import load
from megatron_ultralong.config import command_line
from megatron_ultralong.config.recipes import PRETRAIN_RECIPES, SFT_RECIPES
from megatron_ultralong.doctor import diagnosis
from megatron_ultralong.dropin.arguments import DropInConfig
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.model.yarn import LinearConfig, NtkConfig, YarnConfig
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.program.fields import Number, check_ranges, numbers_of

RECIPES = {"pretrain": "demo-cpu", "plan": "demo-cpu", "sft": "demo-sft-cpu"}
NEEDED = {
    "prepare": ("--source", "a=b", "--tokenizer", "t", "--output", "o", "--seq-length", "8"),
    "prepare chat": ("--source", "a=b", "--tokenizer", "t", "--output", "o"),
    "convert import": ("a", "b"),
    "convert export": ("a", "b"),
    "convert verify": ("a", "b"),
    "convert inspect": ("a",),
    "plan": ("--gpus", "8"),
    **{verb: ("--load", "l", "--data-path", "d") for verb in ("pretrain", "sft")},
    **{
        f"evaluate {name}": ("--load", "l", "--data", "d")
        for name in ("mrcr", "ruler2", "nolima", "longbench-v2")
    },
    **{f"evaluate {name}": ("--load", "l", "--data-path", "d") for name in ("loss", "chat")},
    **{
        f"evaluate {name}": ("--load", "l", "--lengths", "512")
        for name in ("passkey", "needle", "ruler", "graphwalks")
    },
    **{f"evaluate {name}": ("--load", "l", "--data", "d") for name in ("lv-eval", "infinitebench")},
    "evaluate harness": ("--load", "l", "--tasks", "t"),
    "evaluate report": ("r",),
    "generate": ("--load", "l", "--prompt", "p"),
}
"""What a verb cannot be parsed without."""
FROM_FILES = (Hardware, ModelConfig, YarnConfig, NtkConfig, LinearConfig)
"""Classes whose numbers are never flags, but stand in files."""


def nested_classes(cls: type[Any]) -> list[type[Any]]:
    """A dataclass and those that its fields hold, each once."""
    found = [cls]
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            found += nested_classes(hints[field.name])
    return list(dict.fromkeys(found))


def parsed_class(verb: str) -> Any:
    """The configuration that the verb's flags are made of."""
    return load(cli.VERBS[verb].options)


@functools.cache
def flags(verb: str) -> tuple[tuple[Any, Number], ...]:
    """Class and number of every numeric flag of a verb."""
    classes = nested_classes(parsed_class(verb))
    return tuple((cls, number) for cls in classes for number in numbers_of(cls))


def every_number() -> list[tuple[Any, Number]]:
    """Those of all verbs, of the drop-in and of files; each once."""
    found = [pair for verb in cli.VERBS for pair in flags(verb)]
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


def with_needed(verb: str, words: list[str]) -> list[str]:
    """Words, and before them what the verb needs and they have not."""
    needed = list(NEEDED.get(verb, ()))
    for flag in {word.partition("=")[0] for word in words} & set(needed):
        if flag.startswith("--"):
            at = needed.index(flag)
            del needed[at : at + 2]
    return [*needed, *words]


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
    return command_line.parse(parsed_class(verb), verb, words, default)


def values_of(config: Any, cls: Any, name: str) -> Iterator[Any]:
    """The value of a field in the part of a configuration that is a ``cls``."""
    if isinstance(config, cls):
        yield getattr(config, name)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from values_of(value, cls, name)
