"""Names of files and folders on a command line: none is empty, and ``~`` is the home folder."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong import cli
from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import Text, flag_of, mark_of
from megatron_ultralong.program.names import local_name, with_home
from megatron_ultralong.training.config_file import load_config, save_config
from tests.edges import NEEDED, nested_classes, parse, parsed_class, with_needed

VERBS = [verb for verb in cli.VERBS if verb != "doctor"]  # it has no names


def fields_of_names(verb: str) -> dict[str, str]:
    """Flags of a verb whose values name something, and their fields."""
    found: dict[str, str] = {}
    for cls in nested_classes(parsed_class(verb)):
        plain, hints = typing.get_type_hints(cls), typing.get_type_hints(cls, include_extras=True)
        for field in dataclasses.fields(cls):
            kinds = {plain[field.name], *typing.get_args(plain[field.name])}
            flag = flag_of(field.name, hints[field.name])
            if kinds & {str, Path} and mark_of(hints[field.name], Text) is None:
                found |= {flag: field.name} if flag.startswith("--") else {}
    return found


def values_of(config: Any, name: str) -> list[str]:
    """What a field holds, wherever in a configuration it is."""
    found: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found += values_of(value, name)
        elif field.name == name:
            found += map(str, value if isinstance(value, tuple) else [value])
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_no_name_is_empty(verb: str) -> None:
    """``--save "$RUN"`` without RUN trained and saved nothing; ``--tokenizer ""`` was the current
    folder's.
    """
    for flag in fields_of_names(verb):
        for words in ([flag, ""], [f"{flag}="], [f"--{flag[2:].replace('-', '_')}", ""]):
            with pytest.raises(InputError, match=r"^--\S+( '')? is empty, and must name something"):
                parse(verb, [*words, *NEEDED[verb]])
    for place in [n for n, word in enumerate(NEEDED[verb]) if verb.startswith("convert")]:
        words = [*NEEDED[verb][:place], "", *NEEDED[verb][place + 1 :]]
        with pytest.raises(InputError, match=r"^'' is empty"):
            parse(verb, words)


@pytest.mark.parametrize("verb", VERBS)
def test_a_tilde_is_the_home_folder(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells leave it in ``--save=~/run``, which made a folder of the name ``~``."""
    monkeypatch.setenv("HOME", "/home/me")
    for flag, field in fields_of_names(verb).items():
        for words in ([flag, "~/a/b"], [f"{flag}=~/a/b"], [f"{flag}=x=~/a/b"]):
            try:
                config = parse(verb, with_needed(verb, words))
            except InputError:  # of a few names, or NAME=PATH
                continue
            (value, *_) = values_of(config, field)
            assert value.endswith("/home/me/a/b") or "=" in words[0], (words, value)
            assert "~" not in value


URLS = ("s3://bucket/a", "gs://bucket/a", "hf://org/a", "https://host/a", "file:///a")


@pytest.mark.parametrize("verb", VERBS)
def test_a_url_is_no_folder(verb: str, tmp_path: Path) -> None:
    """``--save s3://bucket/run`` saved in a new folder of the name ``s3:``."""
    for flag in fields_of_names(verb):
        for url in URLS:
            for words in ([flag, url], [f"{flag}={url}"], [flag, f"x={url}"]):
                with pytest.raises(InputError, match=r"^\S+ is a URL, and files of this machine's"):
                    parse(verb, with_needed(verb, words))
    for name in ("a/s3:/b", "s3:", "runs/lr=1e-5", "a=b/c:d", "x:/y"):
        assert local_name(name) == name
    file, run = tmp_path / "config.yaml", PRETRAIN_RECIPES["demo-cpu"]()
    save_config(file, dataclasses.replace(run, load="/L"))
    file.write_text(file.read_text().replace("/L", URLS[0]))
    with pytest.raises(InputError, match="is a URL"):
        load_config(file, type(run))


def test_so_it_is_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    file, run = tmp_path / "config.yaml", PRETRAIN_RECIPES["demo-cpu"]()
    save_config(file, dataclasses.replace(run, load="/L", save="/S"))
    text = file.read_text().replace("/L", "~/L").replace("/S", "~/S")
    file.write_text(text)
    found = load_config(file, type(run))
    assert (found.load, found.save) == ("/home/me/L", "/home/me/S")


def test_texts_are_left_as_they_are() -> None:
    assert parse("prepare", with_needed("prepare", ["--separator", ""])).separator == ""
    for words in (["--separator", "~/x"], ["--separator=~/x"]):
        assert parse("prepare", with_needed("prepare", words)).separator == "~/x"
    for name in ("a~", "./~/x", "~x", "a/~", "x=./~", ""):
        assert with_home(name) == name


def test_some_are_names() -> None:
    expected = {
        "pretrain": {"--save", "--load", "--data-path"},
        "prepare": {"--tokenizer", "--output", "--source", "--suffix"},
        "evaluate loss": {"--load", "--output"},
    }
    for verb, flags in expected.items():
        assert flags <= fields_of_names(verb).keys()
    assert len([*itertools.chain(*map(fields_of_names, VERBS))]) > 50


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "dash", ["\u2013", "\u2014", "\u2212", "\u2010\u2010", "-", "---", "-\u2013"]
)
def test_a_flag_behind_another_dash_is_no_value(verb: str, dash: str) -> None:
    """`generate --prompt a --max-new-tokens 9` with a long dash continued three prompts."""
    for flag in fields_of_names(verb):
        for word in (
            f"{dash}{flag[2:]}",
            f"{dash}{flag[2:]}=x",
            f"{dash}{flag[2:].replace('-', '_')}",
        ):
            with pytest.raises(InputError, match=rf"does not begin with two hyphens: type {flag}$"):
                parse(verb, [*NEEDED[verb], word, "x"])


def test_other_words_may_begin_with_a_dash() -> None:
    for prompt in ("\u2013 prompt", "\u2013Yes", "- prompt", "\u2014", "-1", "\u2013prompted"):
        words = ["--load", "l", f"--prompt={prompt}"]
        assert parse("generate", words).prompt == (prompt,)
    assert (
        parse("generate", ["--load", "l", "--prompt", "\u2013 x", "\u2013Yes"]).prompt[1]
        == "\u2013Yes"
    )
