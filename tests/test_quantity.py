"""Amounts and rates for people."""

from __future__ import annotations

import argparse
import ast
import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong import cli
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.dropin.arguments import DropInConfig, add_ultralong_args
from megatron_ultralong.program.errors import InputError, counted, either, named
from megatron_ultralong.program.fields import Number, numbers_of
from megatron_ultralong.program.quantity import (
    BYTES,
    LENGTH,
    TOKENS,
    Unit,
    different,
    duration,
    quantity,
    rate,
)
from megatron_ultralong.training.config_file import load_config
from tests.edges import NEEDED, flags, parse, values_of, with_needed
from tests.sources import PACKAGE, modules

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (5.029e7, "B", "50.3 MB"),
        (999.4, "B", "999 B"),
        (999.6, "B", "1 kB"),
        (16.06e9, "B", "16.1 GB"),
        (0, "B", "0 B"),
        (12345.6, "tokens", "12,346 tokens"),
        (0.01234, "iterations", "0.0123 iterations"),
        (99.99, "tokens", "100 tokens"),
    ],
)
def test_amounts(amount: float, unit: str, text: str) -> None:
    assert quantity(amount, unit) == text


def test_rates() -> None:
    assert rate(5.029e8, "B", 10) == "50.3 MB/s"
    assert rate(0, "tokens", 0) == "0 tokens/s"


@given(st.floats(0.01, 1e17))
def test_bytes_are_short_and_right(amount: float) -> None:
    number, unit = quantity(amount, "B").split()
    assert len(number) <= 6
    found = float(number.replace(",", "")) * 1000 ** ["B", "kB", "MB", "GB", "TB", "PB"].index(unit)
    assert math.isclose(found, amount, rel_tol=0.006)  # half of the third digit


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (273_600, "3 d 4 h"),
        (math.inf, "?"),
        (math.nan, "?"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_rates_have_one_formatter() -> None:
    """No other module writes a rate of bytes, or a bare exponent before a unit."""
    for path in (ROOT / "megatron_ultralong").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\.\d+g\}\s?\{?[a-z_.]*unit", text), path
        if path.name != "quantity.py":
            assert not re.search(r"progress\([^)]*/ ?1e[69]", text), path


LENGTHS = {"512K": 524_288, "1M": 2**20, "2,048": 2048, "1.5k": 1536, "4096": 4096}
BUDGETS = {"1B": 10**9, "1.26b": 1_260_000_000, "500,000": 500_000, "4096": 4096}
SIZES = {"64MB": 64_000_000, "64 mib": 2**26, "1,000": 1000}
WRONG = ("512Q", "1.0001K", "5,12", "1,00", "K", "-1K", "1K2", "0x10", "\u0661K", "9" * 50 + "K")


@pytest.mark.parametrize(
    ("unit", "amounts"), [(LENGTH, LENGTHS), (TOKENS, BUDGETS), (BYTES, SIZES)]
)
def test_amounts_are_read(unit: Unit, amounts: dict[str, int]) -> None:
    for text, value in amounts.items():
        assert unit.plain(text, "--flag") == str(value)


@given(st.integers(0, 10**18), st.sampled_from([LENGTH, TOKENS, BYTES]))
def test_commas_change_nothing(value: int, unit: Unit) -> None:
    assert unit.plain(f"{value:,}", "--flag") == unit.plain(str(value), "--flag") == str(value)
    for letters, factor in unit.factors.items():
        assert unit.plain(f"{value:,}{letters}", "--flag") == str(value * factor)


_LOOKS_LIKE_TOKENS = re.compile(
    r"(^|_)(lengths?|tokens|tile_size|chunk_size|bin|embeddings|bytes)$"
)


def measures() -> list[tuple[str, Any, Number]]:
    """Verb, class and number of every flag that is a length, a count of tokens or a size."""
    return [
        (verb, cls, number)
        for verb in cli.VERBS
        for cls, number in flags(verb)
        if number.unit or _LOOKS_LIKE_TOKENS.search(number.name)
    ]


def test_the_drop_in_reads_them_too() -> None:
    parser = add_ultralong_args(argparse.ArgumentParser())
    for number in numbers_of(DropInConfig):
        if number.unit or _LOOKS_LIKE_TOKENS.search(number.name):
            flag = f"--ultralong-{number.name.replace('_', '-')}"
            found = vars(parser.parse_args([flag, "2K"]))
            assert found[f"ultralong_{number.name}"] == 2048


def test_every_length_and_count_of_tokens_has_a_unit() -> None:
    without = {f"{cls.__name__}.{number.name}" for _, cls, number in measures() if not number.unit}
    assert not without, f"without LENGTH, TOKENS or BYTES: {sorted(without)}"
    assert len({(cls, number.name) for _, cls, number in measures()}) >= 20


@pytest.mark.parametrize("verb", dict.fromkeys(verb for verb, _, _ in measures()))
def test_every_verb_reads_them(verb: str) -> None:
    """All its lengths and counts on one command line, in each way of writing."""
    its = {name: number for each, _, number in measures() if each == verb for name in [number.name]}
    letter = {LENGTH: ("2K", 2048), TOKENS: ("2K", 2000), BYTES: ("2KiB", 2048)}
    for sign in (" ", "="):
        words = []
        for name, number in its.items():
            assert number.unit is not None
            flag, text = "--" + name.replace("_", "-"), letter[number.unit][0]
            words += [f"{flag}={text}"] if sign == "=" else [flag, text]
        config = parse(verb, with_needed(verb, words))
        for name, number in its.items():
            assert number.unit is not None
            expected = letter[number.unit][1]
            found = {
                v for cls, n in flags(verb) if n.name == name for v in values_of(config, cls, name)
            }
            assert found == {(expected,) if number.is_tuple else expected}, name


@pytest.mark.parametrize("words", [["--logits-seq-length", "4K"], ["--logits-seq-length=4K"]])
def test_a_folder_behind_a_length_keeps_its_name(words: list[str]) -> None:
    for line in ([*words, "1m", "2M"], ["1m", *words, "2M"], ["1m", "2M", *words]):
        found = parse("convert verify", line)
        assert (found.logits_seq_length, str(found.a), str(found.b)) == (4096, "1m", "2M")
    found = parse("evaluate passkey", ["--load", "x", "--lengths", "1K", "2K", "4K"])
    assert found.passkey.lengths == (1024, 2048, 4096)


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--seq-length must be a whole number.* not "):
        parse("prepare chat", [*NEEDED["prepare chat"], "--seq-length", text])


def test_files_have_them_too(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: {seq_length: 512K}\nmemory:\n  loss_tile_size: 2,048\n")
    config = load_config(path, PretrainConfig)
    assert (config.data.seq_length, config.memory.loss_tile_size) == (524_288, 2048)
    path.write_text("data: {seq_length: 512Q}\n")
    with pytest.raises(
        InputError, match=r"run\.yaml: data.seq_length must be a whole number.*512Q"
    ):
        load_config(path, PretrainConfig)


def test_help_says_what_a_letter_is(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["prepare", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Tokens per row. 512K is 524,288. [at least 2]" in shown
    assert "1B is 1,000,000,000." in shown


@given(st.integers(0, 10**15), st.integers(-(10**6), 10**6))
def test_amounts_that_differ_are_shown_as_different(amount: int, more: int) -> None:
    one, other = different(amount, max(amount + more, 0), "B")
    assert (one == other) == (amount == max(amount + more, 0))


NOUNS = ("document", "conversation", "row", "file", "turn", "null", "repeat")


def test_one_document_is_no_documents() -> None:
    assert counted(1, "document") == "1 document"
    assert counted(1234, "document") == "1,234 documents"
    assert counted(0, "file") == "0 files"


def test_what_prepare_counts_may_be_one() -> None:
    """Texts of its reports take their plurals from :func:`counted`."""
    wrong = []
    for path in (ROOT / "megatron_ultralong" / "data" / "prepare").glob("*report.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                for value, text in itertools.pairwise(node.values):
                    if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                        word = re.match(r" ([a-z]+)s\b", str(text.value))
                        if word and word[1] in NOUNS:
                            wrong.append(f"{path.name}:{node.lineno}: {text.value}")
    assert not wrong


_NOUNS = """files rows documents layouts prompts GPUs ranks conversations layers samples iterations
checkpoints tensors nodes questions lines shards tasks passes records"""
COUNTED = frozenset(_NOUNS.split())
"""Plurals that stand behind a number in messages; those of tokens and bytes are never one."""
NEVER_ONE = frozenset(
    (
        "checkpoint/formats/megatron.py n rows",  # of a vocabulary
        "data/tokenize/tokenizer_model.py len(ranks) ranks",
        "sequence/head_exchange.py size ranks",
        "config/parallel.py self.model_parallel_size ranks",  # 1 divides all
        "attention/ring/function.py assignment.cp_size ranks",  # for programmers, as what follows
        "sequence/assignment.py len(shards) shards",
        "sequence/assignment.py self.cp_size ranks",
        "program/starting.py num_gpus GPUs",
        "evaluation/results/result.py self.num_samples samples",
        "evaluation/results/result.py cell.num_samples prompts",
    )
)


def _plurals_behind_numbers(path: Path, tree: ast.Module) -> Iterator[str]:
    name = path.relative_to(PACKAGE).as_posix()
    for node in ast.walk(tree):
        for value, text in itertools.pairwise(getattr(node, "values", [])):
            if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                found = re.match(r" ([A-Za-z]+)\b", str(text.value))
                if found and found[1] in COUNTED:
                    yield f"{name} {ast.unparse(value.value)} {found[1]}"


def test_no_message_has_a_number_before_a_plural() -> None:
    """``1 files``: :func:`counted` knows when there is one. A new one is named by this test."""
    found = {one for module in modules() for one in _plurals_behind_numbers(*module)}
    assert not sorted(found - NEVER_ONE), "\n".join(sorted(found - NEVER_ONE))
    assert found >= NEVER_ONE, "those that are gone leave the list"
    own = [p for p in PACKAGE.rglob("*.py") if re.search(r"""['"]s['"] (\*|if)""", p.read_text())]
    assert not own, "write counted()"


def test_counted() -> None:
    told = [counted(number, "file") for number in (0, 1, 2, 1234)]
    assert told == ["0 files", "1 file", "2 files", "1,234 files"]
    assert (counted("1", "pass"), counted("1.5", "pass"), counted(3, "micro-batch")) == (
        *("1 pass", "1.5 passes", "3 micro-batches"),
    )
    assert (named("int"), named("file"), either([1, 2, 4]), either([3])) == (
        *("an int", "a file", "1, 2 or 4", "3"),
    )
