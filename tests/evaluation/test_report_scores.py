"""What stands beside scores: their order, unit, digits and numbers of samples, and their files."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from rich.console import Console

from megatron_ultralong.evaluation.report.measurement import Measurement, conditions
from megatron_ultralong.evaluation.report.page import write_report
from megatron_ultralong.evaluation.report.report import gather_report
from megatron_ultralong.evaluation.report.sections import sections
from megatron_ultralong.evaluation.results import pictures
from megatron_ultralong.evaluation.results.file import read_result
from megatron_ultralong.evaluation.results.result import Result, ScoreCell
from megatron_ultralong.evaluation.results.tables import score_table
from tests.evaluation.results import saved, task_result

BINS = {("2needle", "128"): 9.0, ("2needle", "2048"): 8.0, ("4needle", "512"): 7.0}
"""A task has lengths that the one before it has not."""
OF_THE_HARNESS = (("wiki", "bits_per_byte", 1.0954), ("mmlu", "acc", 40.0), ("gsm", "em", 30.0))


def harness_result() -> Result:
    """Tasks with a score each, and more questions of some than of others."""
    cells = tuple(
        ScoreCell(task, column, 10 + k, score, 0.1)
        for k, (task, column, score) in enumerate(OF_THE_HARNESS)
    )
    one = task_result("harness", "own", 512, {(task, "acc"): 0.0 for task, _, _ in OF_THE_HARNESS})
    return dataclasses.replace(one, cells=cells)


def drawn(result: Result, monkeypatch: pytest.MonkeyPatch) -> Figure:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    pictures.task_picture(result, io.BytesIO())
    return figures[0]


def shown(result: Result) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(score_table(result))
    return " ".join(console.export_text().split())


def test_lengths_are_in_their_order_whatever_tasks_have_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The line of the trained positions stands between the lengths inside and those beyond."""
    found = read_result(saved(task_result("mrcr", "own", 512, BINS), tmp_path / "mrcr.json"))
    assert found.columns == ("128", "512", "2048")
    axes = drawn(found, monkeypatch).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["128", "512", "2K"]
    assert [*axes.lines[1].get_xdata()] == [2, 2]
    table = score_table(found)
    assert [column.header for column in table.columns][2:] == ["128", "512", "2K"]
    assert [column.style for column in table.columns][2:] == ["", "", "red"]


def test_a_bin_is_not_beyond_where_no_question_may_be() -> None:
    """The last bin of a model for 1,073,152 positions ends at 2M."""
    for allowed in (False, True):
        found = task_result("mrcr", "own", 1800, BINS, beyond_trained_positions=allowed)
        assert [found.is_beyond(column) for column in found.columns] == [False, False, allowed]
        (section,) = sections([Measurement("own", found, Path("x.json"))])
        assert ("Red: beyond" in section.tables[-1].note) is allowed


def test_what_is_better_when_lower_is_not_coloured_as_a_score_of_100(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figure = drawn(harness_result(), monkeypatch)
    axes = figure.axes[0]
    coloured = ~np.ma.getmaskarray(axes.collections[0].get_array())
    assert coloured.any(axis=0).tolist() == [False, True, True]
    assert "grey: not of 100, better when lower" in " ".join(figure.get_suptitle().split())
    texts = {text.get_text(): text.get_color() for text in axes.texts}
    assert to_rgba(texts["1.095"]) != to_rgba("white")
    lower = task_result("harness", "own", 512, {("wiki", "bits_per_byte"): 1.1})
    assert len(drawn(lower, monkeypatch).axes) == 1  # no bar of colours


def test_the_table_says_what_is_better_when_lower_and_has_its_digits() -> None:
    text = shown(harness_result())
    assert "score of 100; bits_per_byte (not of 100) better when lower, 10 to 12" in text
    assert " 1.095 " in text
    assert " 40.0 " in text
    lower = shown(task_result("harness", "own", 512, {("wiki", "bits_per_byte"): 1.1}))
    assert "score of 100" not in lower
    assert "score of 100, 100 questions a cell" in shown(task_result("mrcr", "own", 512, BINS))
    (section,) = sections([Measurement("own", harness_result(), Path("x.json"))])
    cells = [cell.text for table in section.tables for row in table.rows for cell in row]
    assert cells.count("1.095") == 1  # by task; the mean has its interval, too
    assert "1.095 [0.899, 1.291]" in cells


def test_questions_of_tasks_with_scores_of_their_own_are_counted() -> None:
    found = conditions(Measurement("own", harness_result(), Path("x.json")))
    assert found["samples"] == "10 to 12 questions a cell, 33 in all"
    assert "truncated prompts" not in found  # the harness says it in a note
    both = {("wiki", "word_perplexity"): 9.0, ("wiki", "bits_per_byte"): 1.0}
    found = conditions(
        Measurement("own", task_result("choices", "own", 512, both, num_truncated=3), Path("x"))
    )
    assert found["samples"] == "100 questions a cell, 100 in all"
    assert found["truncated prompts"] == "3 of 100"


@pytest.mark.parametrize(
    ("result", "note"),
    [
        (harness_result(), "Of 1 task; in brackets"),
        (
            task_result("mrcr", "own", 512, BINS | {("4needle", "128"): 1.0}),
            "Of 2 tasks (128), 1 task (512, 2K); in brackets",
        ),
    ],
)
def test_means_say_how_many_tasks_they_are_of(result: Result, note: str) -> None:
    (section,) = sections([Measurement("own", result, Path("x.json"))])
    assert section.tables[0].note.startswith(note)


def test_scores_that_no_file_can_be_called_have_pictures(tmp_path: Path) -> None:
    """Filters of the harness are called as a task file likes."""
    names = ("em (a/b)", "em (a b)", "em (a-b)", "em (" + "x" * 300 + ")", "../em")
    scores = {("own", name): 10.0 for name in names}
    saved(task_result("harness", "own", 512, scores), tmp_path / "own/harness.json")
    write_report(gather_report([tmp_path / "own"], command="report"), tmp_path / "report")
    found = sorted(path.name for path in (tmp_path / "report").glob("*.png"))
    assert len(found) == len(names)
    assert {"harness-em-(a-b).png", "harness-em-(a-b)-2.png"} < {*found}
