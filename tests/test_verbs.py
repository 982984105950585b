"""The table of verbs: options that are read without what the verb then runs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from megatron_ultralong.cli import VERBS, dispatch
from megatron_ultralong.cli.verbs import TrainingVerb, load
from tests.edges import NEEDED, RECIPES
from tests.patience import patience

HEAVY = ("torch", "megatron.core", "transformers", "matplotlib")


@pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))
def test_every_place_in_the_table_exists(verb: object) -> None:
    places = {
        name: value
        for name, value in vars(verb).items()
        if isinstance(value, str) and name != "help" and value
    }
    for name, place in places.items():
        found = load(place)
        assert dataclasses.is_dataclass(found) if name == "options" else found
    if isinstance(verb, TrainingVerb):
        assert {"recipes", "check", "check_early"} <= set(places)


RANKS = {"pretrain", "sft", "generate", *(name for name in VERBS if name.startswith("evaluate"))}
RANKS.remove("evaluate report")


@pytest.mark.parametrize("rank", ["0", "1", None])
def test_ranks_say_that_they_start_before_they_import(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str | None
) -> None:
    """Once, on the main rank alone, and to standard error."""
    job = {"WORLD_SIZE": "2", "RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in job.items():
        monkeypatch.delenv(name, raising=False)
        if rank is not None and value is not None:
            monkeypatch.setenv(name, value)
    line = "ultralong: starting 2 ranks: loading libraries ...\n"
    said: dict[str, str] = {}

    def load_all_but(place: str) -> object:
        if place in {verb.run for verb in VERBS.values()}:
            printed = capsys.readouterr()
            assert not printed.out
            said[name] = printed.err
            return lambda options: None
        if place.endswith(":ends_here"):
            return lambda run: False
        early = {verb.check_early for verb in VERBS.values()} - {""}
        return (lambda options, num_ranks: None) if place in early else load(place)

    monkeypatch.setattr(dispatch, "load", load_all_but)
    for name, verb in VERBS.items():
        recipe = (RECIPES[name],) if name in RECIPES else ()
        dispatch.run_verb(name, verb, [*recipe, *NEEDED.get(name, ())])
    assert {name for name, text in said.items() if text == line} == (
        RANKS if rank == "0" else set()
    )
    assert set(said.values()) <= {line, ""}
    assert len(said) == len(VERBS)


def test_help_and_mistyped_flags_import_no_engine() -> None:
    """All verbs in one process: none may import what only their work needs."""
    lines = ["import contextlib, io, sys", "from megatron_ultralong.cli import main"]
    for verb in VERBS:
        for last in ("--help", "--no-such-flag"):
            recipe = (RECIPES[verb],) if verb in RECIPES else ()
            words = [*verb.split(), *recipe, *NEEDED.get(verb, ()), last]
            lines += [
                "with contextlib.redirect_stdout(io.StringIO()) as out, "
                "contextlib.redirect_stderr(io.StringIO()) as err:",
                "    try:",
                f"        main({words!r})",
                "    except SystemExit as end:",
                f"        assert end.code == {0 if last == '--help' else 2}, {words!r}",
                "text = out.getvalue() + err.getvalue()",
                f"assert {'--' if last == '--help' else 'no-such-flag'!r} in text, {words!r}",
                f"found = [name for name in {HEAVY!r} if name in sys.modules]",
                f"assert not found, ({words!r}, found)",
            ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=patience(120),
        check=False,
    )
    assert done.returncode == 0, done.stderr
