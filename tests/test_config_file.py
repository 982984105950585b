"""What stands in a configuration file is of its field's type and in its range, or refused."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.config.plain_values import from_dict, with_fields
from megatron_ultralong.config.recipes import PRETRAIN_RECIPES, SFT_RECIPES
from megatron_ultralong.config.training import PretrainConfig, SftConfig
from megatron_ultralong.program import yaml_file
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import check_ranges, numbers_of
from megatron_ultralong.training.config_file import (
    config_text,
    load_config,
    save_config,
    with_absolute_paths,
)
from tests.edges import inside, nested_classes, outside


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
    resolved = dataclasses.asdict({**PRETRAIN_RECIPES, **SFT_RECIPES}[RUNS[kind]]())
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


@pytest.mark.parametrize("kind", RUNS)
def test_a_file_of_some_keys_is_of_the_verb_that_reads_it(kind: Any, tmp_path: Path) -> None:
    """Only the whole configuration of one verb is refused by the other."""
    few = write(tmp_path / "few.yaml", "train_iters: 7\noptimizer: {lr: 2.0e-5}\n")
    found = load_config(few, kind)
    assert (type(found), found.train_iters, found.optimizer.lr) == (kind, 7, 2e-5)
    for other, recipe in RUNS.items():
        config = {**PRETRAIN_RECIPES, **SFT_RECIPES}[recipe]()
        whole = write(tmp_path / "whole.yaml", config_text(config))
        short = whole.read_text().replace("log_interval:", "# log_interval:")
        older = write(tmp_path / "older.yaml", short)  # of a release without that field
        if other is kind:
            assert type(load_config(whole, kind)) is kind
        else:
            with pytest.raises(InputError, match=f"of a {other.verb} run, but {kind.verb} needs"):
                load_config(whole, kind)
            with pytest.raises(InputError, match=f"of a {other.verb} run, but {kind.verb} needs"):
                load_config(older, kind)


COLLECTIONS = {
    **{tag: ("[{x: 1}]", "[{x: [1]}, ", "{{x: {}}}", "]") for tag in ("omap", "pairs")},
    "seq": ("[1]", "[", "{}", "]"),
    "map": ("{x: 1}", "{x: [", "{}", "]}"),
    "set": ("{1}", "{[1], ", "{}", "}"),
    "merge": ("{x: 1}", "{<<: [", "{}", "]}"),
    "text": ("x", "[", "{}", "]"),
}
"""By tag: one without aliases, and how one that names others begins, names and ends."""


def multiplied(tag: str) -> str:
    """Ten of ten of ten, nine times, by aliases."""
    plain, begin, named, end = COLLECTIONS[tag]
    stated = {"merge": "!!map", "text": "!!seq"}.get(tag, f"!!{tag}")
    lines = [f"a0: &a0 {stated if tag != 'text' else '!!str'} {plain}"]
    for n in range(1, 10):
        names = ", ".join([named.format(f"*a{n - 1} ")] * 10)
        lines.append(f"a{n}: &a{n} {stated} {begin}{names}{end}")
    return "\n".join(lines)


MERGED_WIDE = (
    f"a: &a {{{', '.join(f'k{n}: 0' for n in range(4000))}}}\nb: {{<<: [{'*a, ' * 30_000}]}}"
)
LONG_TEXT = f"a: &a {'x' * 100_000}\ntrain_iters: [{'*a, ' * 30_000}]"
TOO_MANY = r"its aliases \(\*\) make more than 524,288 characters"


def test_aliases_multiply_in_no_collection(tmp_path: Path) -> None:
    """Nothing is made of such a file, whatever the tags that PyYAML makes collections of."""
    tags = {tag.split(":")[-1] for tag in yaml.SafeLoader.yaml_constructors if tag}
    scalars = {"null", "bool", "int", "float", "binary", "timestamp", "str"}
    assert tags - scalars == COLLECTIONS.keys() - {"merge", "text"}
    for text in (*map(multiplied, COLLECTIONS), MERGED_WIDE, LONG_TEXT):
        with pytest.raises(InputError, match=TOO_MANY):
            load_config(write(tmp_path / "run.yaml", text), PretrainConfig)


def test_any_tag_of_any_text_is_read_or_refused(tmp_path: Path) -> None:
    tags = [tag for tag in yaml.SafeLoader.yaml_constructors if tag]
    texts = ["", "x", "'1.5.5'", "[]", "[a]", "[[a]]", "{}", "{a: b}", "[a: b]", "[{a: b, c: d}]"]
    texts += ["{? [a] : b}", "{<<: x}", "{=: x}", "1:" * 300 + "1", "0001-01-01T00:00:00+23:00"]
    for tag, text in itertools.product(tags, texts):
        path = write(tmp_path / "run.yaml", f"train_iters: !<{tag}> {text}")
        with contextlib.suppress(InputError):
            load_config(path, PretrainConfig)


def test_a_text_without_aliases_is_not_counted_as_one_with() -> None:
    """However dense it is, a file of the largest size stays below what aliases may make."""
    dense = ("[{}]", "a,"), ("{{{}}}", "a,"), ("[{}]", "?,"), ("[{}]", "[],"), ("{}x", "? ")
    for around, one in dense:
        text = around.format(one * 200)
        assert yaml_file._num_named(yaml.compose(text), {}) < 2 * len(text), text[:8]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('optimizer: {lr: "1e-5"}', r"optimizer\.lr must be a number, not '1e-5': .*without quot"),
        ("optimizer: {lr: .nan}", r"optimizer\.lr must be between 0 and 1, not nan: .*; write 0 o"),
        ("optimizer: {lr: 1:30}", r"optimizer\.lr must be a number, not '1:30': .* digits alone"),
        ("train_iters: 1_000", r"train_iters must be a whole number, not '1_000': .* digits alone"),
        ("train_iters: 0x10", r"train_iters must be a whole number, not '0x10': .* digits alone"),
        ('train_iters: "10"', r"train_iters must be a whole number, not '10': .*without quotes"),
        ("optimizer: 3", r"optimizer must be a block of keys and values, not 3"),
        ("optimizer: {lr: 1e-5, lr: 1e-4}", r"key 'lr' stands there twice"),
        ("data: {seed: true}", r"data\.seed must be a whole number, not True"),
        ("data: {document_mask: no}", r"data\.document_mask must be one of 'none', 'block', not F"),
        ("train_iters: 1e2", r"train_iters must be a whole number, not 100\.0"),
        ("log: {profile_ranks: [0, -1]}", r"log\.profile_ranks must be at least 0, not -1"),
        ("log: {profile_ranks: [0, x]}", r"profile_ranks\[1\] must be a whole number, not 'x'"),
        ("save: 3", r"save must be text, not 3"),
        ("rope: {rope_scaling: yarn, attention_factor: hot}", r"a number or one of 'yarn', not 'h"),
        ("1: 2", r"key '1' is not known"),
        ("lr: 1e-5", r"key 'lr' belongs in the block 'optimizer': .* `optimizer: {lr: ...}`"),
        ("[1, 2]", "is not a configuration: it holds list"),
        ("", "is not a configuration: it holds nothing, not lines of `key: value`"),
        ("[" * 10_000, "is not YAML: "),
        ("train_iters: " + "9" * 5000, "is not YAML: Exceeds the limit"),
        ("? [a]\n: 1", "is not YAML"),
        ("a: &a [1]\nb: *b", "is not YAML"),
        ("a: &a [*a]", TOO_MANY),
        ("a: &a {<<: *a}", TOO_MANY),
        ("a: !!timestamp 5", "is not YAML"),
        ("a: !!bool x", "is not YAML"),
        ("load: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_what_a_file_cannot_hold(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "run.yaml", text)
    with pytest.raises(InputError, match=message) as refusal:
        load_config(path, PretrainConfig)
    assert str(path) in str(refusal.value)


def test_a_flag_at_the_top_of_a_file_is_told_its_block(tmp_path: Path) -> None:
    """Users write a file in the names of flags, which have no blocks."""
    for block, inner in dataclasses.asdict(SftConfig()).items():
        for name in inner if isinstance(inner, dict) else ():
            path = write(tmp_path / "run.yaml", f"{name}: 1")
            with pytest.raises(InputError, match=f"'{name}' belongs in the block '{block}'"):
                load_config(path, SftConfig)


def test_a_file_may_give_the_length_in_tokens_alone() -> None:
    """It was refused: train_iters is 0."""
    config = from_dict(PretrainConfig, {"load": "a", "data": {"data_path": "b"}, "train_tokens": 9})
    check_ranges(config)
    config.with_budget(2).check_fields()
    with pytest.raises(InputError, match="at least 1, not 0, where no train_tokens"):
        dataclasses.replace(config, train_tokens=0.0).check_fields()


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
    resolved = dataclasses.asdict(PRETRAIN_RECIPES["llama3.1-8b-1m"]())
    paths = list(key_paths(resolved))
    pool: list[Any] = [0, -1, 1, 2**31, 2**63, 0.5, math.nan, math.inf, True, None, "", "x", "1e-5"]
    pool += [[], {}, [0], [None], {"a": 1}, [[1]], "none", "keep", "yarn", "block", 1e308, -0.0]
    num_read = 0
    for _ in range(900):
        values = resolved
        for path in random_.sample(paths, random_.randint(1, 3)):
            values = with_value(values, path, random_.choice(pool))
        with contextlib.suppress(InputError):
            config = from_dict(PretrainConfig, values, "run.yaml")
            num_read += 1
            check_ranges(config)
            assert from_dict(PretrainConfig, dataclasses.asdict(config)) == config
    assert 5 < num_read < 450


TEXTS = (
    *("1e5", "1e-5", "+.5", "1.", ".inf", "010", "1_000", "0x1f", "0o7", "1:30", "12", "-3"),
    *("yes", "null", "~", "=", "<<", "2026-01-01", "a: b", "# x", " x ", "*a", "- a", "{", "\n"),
    *("\udcff", "\x85", "\u2028", "\x07", "\ufeffx", "日本", "😀"),
)


@given(st.one_of(st.sampled_from(TEXTS), st.text(), st.from_regex(r"[-+.0-9eE_:x]{1,8}")))
def test_texts_are_read_as_they_were_written(tmp_path_factory: Any, text: str) -> None:
    """Whatever a text looks like, a run finds it in its configuration when it resumes."""
    file = tmp_path_factory.getbasetemp() / "texts.yaml"
    written = PretrainConfig(load=f"/x/{text}x", save=f"/y/{text}x", train_iters=1)
    written = with_fields(written, data_path=f"/z/{text}x", wandb_project=text)
    save_config(file, written)
    assert load_config(file, PretrainConfig) == with_absolute_paths(written)
