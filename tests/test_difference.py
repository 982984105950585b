"""Where two records differ, told in words of the texts that Python makes of them."""

import dataclasses
from typing import Any

import pytest

from megatron_ultralong.model.yarn import LinearConfig, YarnConfig, in_words
from megatron_ultralong.program.difference import first_difference, value_difference


@dataclasses.dataclass(frozen=True)
class File:
    path: str
    sha256: str = "0"


@dataclasses.dataclass(frozen=True)
class Source:
    name: str
    path: str
    files: list[File]
    num_documents: int = 5


@dataclasses.dataclass(frozen=True)
class Bin:
    source: str
    length_bin: str
    weight: float = float("nan")


OWN = Source("own", "texts/*", [File("a.md"), File("b.md")])
CSV = Source("csv", "x.jsonl", [File("x.jsonl")])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ([OWN], [CSV], ("inputs", "own=texts/*", "csv=x.jsonl")),
        (
            [OWN, CSV],
            [CSV, OWN],
            ("inputs", "own=texts/*, csv=x.jsonl", "csv=x.jsonl, own=texts/*"),
        ),
        ([OWN], [OWN, CSV], ("inputs", "without csv=x.jsonl", "with csv=x.jsonl")),
        ([OWN], [], ("inputs", "with own=texts/*", "without own=texts/*")),
        (
            [OWN],
            [dataclasses.replace(OWN, num_documents=6)],
            ("inputs, own=texts/*, num_documents", "5", "6"),
        ),
        (
            [OWN],
            [dataclasses.replace(OWN, files=[File("a.md"), File("b.md", "1")])],
            ("inputs, own=texts/*, files, b.md, sha256", "0", "1"),
        ),
        ([Bin("a", "<64", -1.5)], [Bin("a", "<64")], ("inputs, a=<64, weight", "-1.5", "nan")),
        ({"torch": "2.1"}, {"torch": "2.2"}, ("inputs, torch", "2.1", "2.2")),
        ({"valid": File("a")}, {}, ("inputs, valid", "path a, sha256 0", "nothing")),
        ((1, 2), (1, 3), ("inputs", "1, 2", "1, 3")),
        (None, 3, ("inputs", "nothing", "3")),
        ("<|end|>", "[half", ("inputs", "<|end|>", "[half")),
        ("[" * 5000, "x" * 300, ("inputs", "[" * 200 + "...", "x" * 200 + "...")),
    ],
)
def test_the_first_part_that_differs(old: Any, new: Any, told: tuple[str, str, str]) -> None:
    assert first_difference("inputs", str(old), str(new)) == told


def test_long_records_are_told_by_their_length() -> None:
    many = str([File(f"{number}.md") for number in range(80_000)])
    assert first_difference("files", many, many + " ")[1] == f"a record of {len(many):,} characters"


def test_scalings_of_the_rotary_embedding() -> None:
    assert in_words(None) == "no scaling"
    assert in_words(LinearConfig(8.0)) == "linear, scaling_factor 8.0"
    assert in_words(YarnConfig(2.0)).startswith("yarn, scaling_factor 2.0, original_max_position")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({"a": [1], "b": 1}, {"a": (1,), "b": 2}, ("work, b", "1", "2")),
        ({"a": None}, {}, ("work, a", "nothing", "nothing")),
        ({"a": 1}, {"a": 1.0}, ("work, a", "1", "1.0")),
        ({"a": {"b": "x", "c": True}}, {"a": {"c": False, "b": "x"}}, ("work, a, c", "yes", "no")),
    ],
)
def test_values_are_compared_as_they_are_written(
    old: dict[str, object], new: dict[str, object], told: tuple[str, str, str]
) -> None:
    """One side was read from JSON, where a tuple is a list; 1 and 1.0 are two there."""
    assert value_difference("work", old, new) == told
