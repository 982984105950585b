"""What task files of the harness name, as a finished evaluation is compared with a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.evaluation import commands, contents, finished
from megatron_ultralong.evaluation.harness.task_files import check_names
from megatron_ultralong.program.errors import InputError

BEFORE, AFTER = '{"q": 1}', '{"q": 2}'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(contents, "now", iter(range(10**6)).__next__)
    return tmp_path


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def question(*tasks: str, **flags: Any) -> dict[str, Any]:
    return finished.question("harness", commands.FLAGS["harness"](tasks=tasks, **flags))


def by_file() -> Any:
    return question("tasks/mine.yaml")


def by_folder() -> Any:
    return question("mine", include_path="tasks")


BOTH = pytest.mark.parametrize("asked", [by_file, by_folder])


@BOTH
def test_task_files_count_with_what_they_name(asked: Callable[[], Any]) -> None:
    seen = []
    named = "dataset_path: json\ndataset_kwargs: {data_files: {test: questions.jsonl}}"
    for path, text in (
        ("tasks/mine.yaml", "task: mine\ninclude: _shared_yaml"),
        ("tasks/_shared_yaml", f"include: mine.yaml\n{named}"),
        ("questions.jsonl", BEFORE),
        ("questions.jsonl", AFTER),
        ("tasks/mine.yaml", "task: mine\ninclude: _shared_yaml\nmetric: !function metric.score"),
        ("tasks/metric.py", "def score(): ..."),
        ("tasks/metric.py", "def score(): pass"),
    ):
        write(path, text)
        seen.append(asked())
    assert len({json.dumps(one) for one in seen}) == len(seen)
    for stray in ("tasks/other.py", "mine", "json", "task", "score"):
        write(stray, "x")
    assert asked() == seen[-1] == asked()


def data(path: str, *lines: str) -> str:
    return "\n".join(("task: mine", f"dataset_path: {path}", *lines))


def kwargs(**values: Any) -> str:
    return f"dataset_kwargs: {json.dumps(values)}"


NAMED = {
    "folder": data("rows"),
    "pattern": data("json", kwargs(data_files="rows/*.jsonl")),
    "deep pattern": data("json", kwargs(data_files={"test": ["**/a b.jsonl"]})),
    "data_dir": data("json", kwargs(data_dir="rows", data_files="a b.jsonl")),
    "data_dir alone": data("json", kwargs(data_dir="rows")),
    "spaces": data("json", kwargs(data_files={"test": "rows/a b.jsonl"})),
    "folder with files": data("rows", kwargs(data_files="a b.jsonl")),
    "home": data("json", kwargs(data_files="~/rows/a b.jsonl")),
}
"""Task files that name ``rows/a b.jsonl``."""


@BOTH
@pytest.mark.parametrize("form", [*NAMED, "file://", "include", "group", "overlaid"])
def test_data_count_however_they_are_named(
    form: str, asked: Callable[[], Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here))
    write("rows/a b.jsonl", BEFORE)
    named = kwargs(data_files=f"file://{here}/rows/a b.jsonl")
    text = NAMED.get(form) or data("json", named)
    if form == "include":
        write("tasks/common.yml", NAMED["spaces"].replace("task: mine\n", ""))
        text = "task: mine\ninclude: common.yml"
    if form == "group":
        text = "group: mine\ntask:\n- task: inner\n  dataset_path: rows"
    if form == "overlaid":
        write("tasks/common.yml", kwargs(data_files="a b.jsonl"))
        text = data("rows", "include: common.yml")
    write("tasks/mine.yaml", text)
    first = asked()
    assert asked() == first
    write("rows/a b.jsonl", AFTER + " ")
    assert asked() != first


@BOTH
@pytest.mark.parametrize(
    "text",
    [
        data("json"),
        data("json", kwargs(data_files="none.jsonl")),
        data("json", kwargs(data_files="https://example.com/a.jsonl")),
        data("json", kwargs(data_files="zip://a.jsonl::rows.zip")),
        data("../elsewhere"),
        data("https://example.com/rows"),
        data("7"),
        "group: mine\ntask:\n- include: other.yaml",
        "group: mine\ntask: [other.yaml]",
        "task: mine\ntask: twice",
        "task: [",
        "task: mine\ninclude: none.yaml",
        data("json", kwargs(data_dir="none")),
    ],
)
def test_what_nobody_can_tell_is_never_the_same(text: str, asked: Callable[[], Any]) -> None:
    write("tasks/mine.yaml", text)
    assert asked() != asked()
    assert "what cannot be compared: mine.yaml: " in json.dumps(asked())


@BOTH
@pytest.mark.parametrize("text", [data("cais/mmlu"), data("gsm8k"), "task: mine", "group: mine"])
def test_names_of_the_hub_are_the_same(text: str, asked: Callable[[], Any]) -> None:
    write("tasks/mine.yaml", text)
    assert asked() == asked()


def test_two_tasks_of_one_name_are_refused_since_the_harness_asks_the_last() -> None:
    for path in ("mine.yaml", "copy/other.yaml", "copy/group.yaml"):
        key = "group" if "group" in path else "task"
        write(path, f"include: {'../' * path.count('/')}common\n{key}: mine")
    write("common", "task: common")
    write("odd.yaml", "task: [")
    check_names(["mine.yaml", "./mine.yaml", "gsm8k", "odd.yaml", "none.yaml", "common"])
    for other in ("copy/other.yaml", "copy/group.yaml", "mine"):
        with pytest.raises(InputError, match=rf"mine\.yaml and {other} are both called 'mine'"):
            check_names(["mine.yaml", "gsm8k", other])


def test_copies_of_data_sets_count_under_their_names() -> None:
    write("tasks/mine.yaml", data("cais/mmlu", kwargs(data_files="test.jsonl")))
    write("hub/cais/mmlu/test.jsonl", BEFORE)
    first = question("tasks/mine.yaml", data="hub")
    assert question("tasks/mine.yaml", data="hub") == first
    write("hub/cais/mmlu/test.jsonl", AFTER + " ")
    assert question("tasks/mine.yaml", data="hub") != first


def test_files_that_change_places_are_others() -> None:
    write("tasks/mine.yaml", data("json", kwargs(data_files=["one/a.jsonl", "two/a.jsonl"])))
    write("one/a.jsonl", BEFORE)
    write("two/a.jsonl", AFTER)
    first = by_file()
    write("one/a.jsonl", AFTER)
    write("two/a.jsonl", BEFORE)
    assert by_file() != first


def test_a_task_file_is_the_same_by_another_path(here: Path) -> None:
    write("mine.yaml", data("cais/mmlu"))
    first = question("mine.yaml", "gsm8k")
    for spelling in ("./mine.yaml", str(here / "mine.yaml"), f"../{here.name}/mine.yaml"):
        assert question(spelling, "gsm8k") == first
    assert question("mine.yaml", "./mine.yaml", "gsm8k") == first
    write("copy/mine.yaml", data("cais/mmlu"))
    assert question("copy/mine.yaml", "gsm8k") == first
    assert question("gsm8k") != first
