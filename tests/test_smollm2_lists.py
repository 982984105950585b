"""Lists and numbers of questions of both examples, as the steps refuse or take them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.test_smollm2 import SCRIPTS
from tests.test_smollm2_settings import Machine, machine

__all__ = ["machine"]

LISTS = ("LENGTHS", "DEPTHS", "MILLION_DEPTHS", "RULER_SHORT", "RULER_LONG", "RULER_TASKS")


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("value", ["0 0", "8192 8192", "vt vt", " ", "-1", "101", "8192;", "*"])
def test_a_list_that_an_evaluation_refuses_is_told_by_the_first_step(
    machine: Machine, name: str, value: str
) -> None:
    """With DEPTHS="0 0" step 7 ended, after the training."""
    refused = machine.run("01_get_weights.sh", **{name: value})
    if value == "101" and "DEPTHS" not in name:
        assert refused.returncode == 0, "a length, and nobody knows all tasks here"
        return
    assert refused.returncode == 2
    rule = " (per cent, 0 to 100)" if "DEPTHS" in name else "" if "TASKS" in name else " (tokens)"
    told = f"{name} must be different values{rule} with spaces between them, such as '"
    assert told in refused.stderr
    assert f"', not '{value}'" in refused.stderr
    assert not machine.work.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("DEPTHS", "0 0.5 99.9 100"), ("LENGTHS", "8192 16K 1M 131,072"), ("RULER_TASKS", "vt qa_1")],
)
@pytest.mark.parametrize("example", ["smollm2", "llama3.1-8b"])
def test_lists_of_evaluations_are_as_evaluations_take_them(
    tmp_path: Path, example: str, name: str, value: str
) -> None:
    done = subprocess.run(
        ["bash", "-euc", f'source "$0"; echo "${name}"', SCRIPTS.parent / example / "settings.sh"],
        env={"PATH": os.environ["PATH"], "WORK": str(tmp_path), name: value},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{value}\n"


@pytest.mark.parametrize(("name", "value"), [("DEPTHS", "0 0"), ("RULER_LENGTHS", "128K 128K")])
def test_the_same_of_the_8b(tmp_path: Path, name: str, value: str) -> None:
    done = subprocess.run(
        ["bash", SCRIPTS.parent / "llama3.1-8b" / "01_get_weights.sh"],
        env={"PATH": os.environ["PATH"], "WORK": str(tmp_path / "work"), name: value},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"{name} must be different values" in done.stderr
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(("words", "limit"), [((), "0"), (("--cpu",), "4"), (("256k",), "0")])
def test_a_look_at_the_steps_asks_few_of_the_choices(
    machine: Machine, words: tuple[str, ...], limit: str
) -> None:
    machine.work.mkdir()
    (machine.work / "choices.jsonl").touch()
    assert machine.run("choices.sh", *words).returncode == 0
    ((*_, program),) = [machine.calls()]
    assert program[program.index("--limit") + 1] == limit
