"""The one type of results: its means and errors, its file, and what is not a result."""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megatron_ultralong.evaluation.report.page import print_report, write_report
from megatron_ultralong.evaluation.report.report import gather_report
from megatron_ultralong.evaluation.results.file import read_result, read_results, write_results
from megatron_ultralong.evaluation.results.result import (
    KINDS,
    Result,
    ScoreCell,
    depth_row,
    mean_cell,
)
from megatron_ultralong.program.errors import InputError
from tests.evaluation.results import (
    loss_of,
    loss_results,
    needle_result,
    passkey_result,
    saved,
    task_result,
)


def examples() -> list[list[Result]]:
    scores = {("vt", "4096"): 90.0, ("vt", "8192"): 70.0, ("fwe", "4096"): 50.0}
    return [
        loss_results((None, 3.0, 4.5, 6.0)),
        [passkey_result("a", 512, {512: 3, 1024: 10})],
        [needle_result("a", 512, {512: 3})],
        [task_result("ruler", "a", 4096, scores), task_result("ruler", "b", 8192, scores)],
    ]


def test_a_cell_has_the_mean_and_its_standard_error() -> None:
    shares = [1.0, 0.0, 0.25, 1.0]
    cell = mean_cell("vt", "4096", shares, {"num_truncated": 2})
    assert (cell.num_samples, cell.score) == (4, 56.25)
    assert cell.error == pytest.approx(100 * statistics.stdev(shares) / 2)
    assert mean_cell("vt", "4096", [1.0]).error is None


def test_means_are_over_rows_or_over_samples() -> None:
    scores = {("vt", "4096"): 90.0, ("fwe", "4096"): 50.0, ("vt", "8192"): 10.0}
    result = task_result("ruler", "a", 4096, scores)
    cells = (dataclasses.replace(result.cells[0], num_samples=300), *result.cells[1:])
    result = dataclasses.replace(result, cells=cells)
    assert (result.mean("4096"), result.mean("8192"), result.mean("1")) == (70.0, 10.0, None)
    assert result.mean() == 40.0
    assert result.pooled(columns=["4096"]) == 80.0
    assert result.pooled(rows=["qa"]) is None


@pytest.mark.parametrize("num_samples", range(1, 60))
def test_whole_numbers_of_hits_stay_whole(num_samples: int) -> None:
    """Four of five are 80 %, whatever cells they are spread over: a bound is met, not missed."""
    rng = random.Random(num_samples)
    counts = [rng.randint(0, num_samples) for _ in range(7)]
    cells = tuple(
        mean_cell(depth_row(row), "512", [1.0] * hits + [0.0] * (num_samples - hits))
        for row, hits in enumerate(counts)
    )
    result = dataclasses.replace(passkey_result("a", 512, {512: 1}), cells=cells)
    assert result.retrieved([512]) == 100 * sum(counts) / (7 * num_samples)


def test_losses_are_weighted_by_their_predictions() -> None:
    result = loss_of("a", 512, (4.0, 2.0, None, 5.0))
    assert result.mean_loss(0, 512) == 3.0
    assert result.mean_loss(512, 1024) is None
    assert result.mean_loss() == (256 * 4 + 256 * 2 + 1024 * 5) / 1536
    assert result.loss((512, 1024)) is None
    assert result.loss((0, 512)) is None
    assert result.num_positions == 2048


@pytest.mark.parametrize("depth", [0.0, 33.3, 100 / 3, 11.0, 1e-9, 99.99999999999])
def test_a_depth_is_read_back_as_it_was(depth: float) -> None:
    assert float(depth_row(depth)) == pytest.approx(depth, rel=1e-15)
    assert depth_row(float(depth_row(depth))) == depth_row(depth)


@pytest.mark.parametrize("results", examples(), ids=lambda results: results[0].kind.name)
def test_files_are_read_back_as_they_were_written(results: list[Result], tmp_path: Path) -> None:
    path = saved(results, tmp_path / "file.json")
    assert read_results(path) == tuple(results)
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    values = json.loads(path.read_text())
    assert (values["kind"], values["format_version"]) == (results[0].kind.name, 2)
    for entry, result in zip(values["results"], results, strict=True):
        assert entry["means"] == {column: result.mean(column) for column in result.columns}


def test_a_benchmark_that_this_version_does_not_know_is_shown(tmp_path: Path) -> None:
    """A file states how its rows and columns are to be read."""
    kind = dataclasses.replace(KINDS["ruler"], name="riddles", title='Riddles "of" <script>')
    scores = {("walking", "4096"): 75.0, ("walking", "8192"): 25.0}
    result = dataclasses.replace(task_result("ruler", "a", 4096, scores), kind=kind)
    saved(result, tmp_path / "in" / "riddles.json")
    saved(loss_results(), tmp_path / "in" / "loss.json")
    report = gather_report([tmp_path / "in"], command="")
    assert [section.title for section in report.sections] == ["Loss by position", kind.title]
    assert report.gathered.notices == ()
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    print_report(report, console)
    assert "75.0" in console.export_text()
    page = write_report(report, tmp_path / "page").read_text(encoding="utf-8")
    assert "Riddles &#34;of&#34; &lt;script&gt;" in page
    assert "<script" not in page
    assert (tmp_path / "page" / "riddles.png").is_file()
    # The page's own file is not a result.
    assert len(gather_report([tmp_path], command="").gathered.measurements) == 3


def test_one_result_is_asked_for_where_a_file_holds_two(tmp_path: Path) -> None:
    path = saved(loss_results(), tmp_path / "loss.json")
    with pytest.raises(InputError, match=r"holds results of before, after: name a file that"):
        read_result(path)
    with pytest.raises(ValueError, match="unpack"):
        write_results(path, [loss_results()[0], passkey_result("a", 512, {512: 3})])


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (("0", "512", 0, None), "no score of '0', '512'"),
        (("top", "512", 1, 0.0), "could not convert"),
        (("0", "long", 1, 0.0), "column 'long' is not a length"),
        (("0", "0512", 1, 0.0), "column '0512' is not a length"),
        (("101", "512", 1, 0.0), "row '101' is not a depth in per cent"),
        (("nan", "512", 1, 0.0), "row 'nan' is not a depth in per cent"),
        (("0.0", "512", 1, 0.0), "row '0.0' is not a depth in per cent"),
        (("0", "512", 10, 33.0), "33 % of 10 prompts is 3.3 hits"),
        (("0", "512", 1, 100.1), "score is 100.1, not from 0 to 100"),
        (("0", "512", 1, -0.1), "score is -0.1, not from 0 to 100"),
        (("0", "512", 0, 1.0), "score 1.0 of 0 samples"),
        (("0", "512", 9, None), "score None of 9 samples"),
        (("0", "512", 9, 0.0, 51.0), "error is 51, not from 0 to 50"),
        (("0", "512", 9, 0.0, None, {"num_truncated": 10}), "num_truncated is 10, not from 0 to 9"),
        (("0", "512", 9, 0.0, None, {"token_accuracy": 1.1}), "token_accuracy is 1.1, not from 0"),
        (("0", "loss", 9, 1.0, None, {"perplexity": 3.0}), "perplexity is 3.0, not 2.718"),
        (("0", "512", 2, 50.0, 50.0, {}, ((0.0, 1), (100.0, 2))), "num_samples is 2, not 3"),
        (
            ("0", "512", 2 * 10**6, 50.0, 0.03, {}, ((0.0, 10**6), (100.0, 10**6 + 1))),
            "num_samples is 2000000, not 2000001",  # exactly: the bootstrap draws so many
        ),
        (("0", "512", 2, 50.0, 50.0, {}, ((100.0, 1), (0.0, 1))), "not different and ascending"),
        (("0", "512", 2, 0.0, 0.0, {}, ((0.0, 1), (0.0, 1))), "not different and ascending"),
        (
            ("0", "512", 100_001, 0.0, 0.0, {}, tuple((k / 2000, 1) for k in range(100_001))),
            "distribution has 100001 scores, at most 100000",
        ),
        (("0", "512", 2, 40.0, 50.0, {}, ((0.0, 1), (100.0, 1))), "score is 40.0, not 50.0"),
        (("0", "512", 2, 50.0, 10.0, {}, ((0.0, 1), (100.0, 1))), "error is 10.0, not 50.0"),
    ],
)
def test_a_cell_is_possible(cell: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(passkey_result("a", 512, {512: 3}), cells=(ScoreCell(*cell),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cells": ()}, "at least one cell"),
        ({"cells": (ScoreCell("0", "512", 1, 0.0),) * 2}, "two cells of one row and column, '0'"),
        ({"config": {}}, "flag 'by' is None, not argmax or decoding"),
        ({"kind": KINDS["position_loss"]}, "flag 'split' is None, not valid or train"),
        ({"kind": KINDS["ruler"]}, "no metric of"),
        ({"date": "yesterday"}, "isoformat"),
    ],
)
def test_rows_and_columns_are_what_the_kind_says(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(passkey_result("a", 512, {512: 3}), **changes)


def test_positions_are_counted_once() -> None:
    result = loss_results()[0]
    first, second, *others = result.cells
    for row, message in (("0-512", "'256-512' is not of"), ("256-300", "'256-512' is not of"),
                         ("256-0256", "none"), ("00-256", "'00-256'")):  # fmt: skip
        changed = dataclasses.replace(first, row=row)
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(result, cells=(changed, second, *others))
    with pytest.raises(ValueError, match="num_packed_rows is 0"):
        dataclasses.replace(result, num_packed_rows=0)
