"""Results that earlier versions wrote: read, and shown as those versions showed them.

The files in ``format_1`` were written by the code that wrote format 1; ``shown.txt`` and
``page.html`` (without its style and its pictures) are what that code made of them, in the
sentences of today.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from megatron_ultralong.evaluation.report.page import print_report, report_page
from megatron_ultralong.evaluation.report.report import Report, gather_report
from megatron_ultralong.evaluation.results.file import read_result, read_results, write_results
from megatron_ultralong.evaluation.results.tables import loss_table, score_table
from tests.evaluation.results import DATE, VERSIONS

ROOT = Path(__file__).parents[2]
FOLDER = Path("tests/evaluation/format_1")


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Report:
    monkeypatch.chdir(ROOT)  # the report names the files as they were given
    return gather_report(
        [FOLDER],
        title="Results of format 1",
        command="ultralong evaluate report",
        versions=VERSIONS,
        date=DATE,
    )


def print_tables(console: Console) -> None:
    """The tables that the verbs print."""
    console.print(loss_table(read_results(FOLDER / "loss.json")))
    for path in sorted(FOLDER.rglob("*.json")):
        if path.stem != "loss":
            console.print(score_table(read_result(path, path.stem)))


@pytest.mark.parametrize("path", sorted((ROOT / FOLDER).rglob("*.json")), ids=lambda p: p.stem)
def test_it_is_written_in_the_format_of_today_and_read_back(path: Path, tmp_path: Path) -> None:
    results = read_results(path)
    assert json.loads(path.read_text())["format_version"] == 1
    write_results(tmp_path / "again.json", results)
    assert json.loads((tmp_path / "again.json").read_text())["format_version"] == 2
    assert read_results(tmp_path / "again.json") == results


def test_a_file_from_before_a_flag_has_what_was_done_then(tmp_path: Path) -> None:
    for name, flag, value in (("loss", "split", "valid"), ("before/passkey", "by", "argmax")):
        values = json.loads((ROOT / FOLDER / f"{name}.json").read_text())
        del values["config"][flag]
        (tmp_path / "old.json").write_text(json.dumps(values))
        assert read_results(tmp_path / "old.json")[0].config[flag] == value


def test_every_table_is_as_it_was(report: Report) -> None:
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    print_report(report, console)
    print_tables(console)
    assert console.export_text() == (FOLDER / "shown.txt").read_text()


def test_the_page_is_as_it_was(report: Report) -> None:
    assert plain(report_page(report)) == plain((FOLDER / "page.html").read_text())


def plain(page: str) -> list[str]:
    """Tags and words of a page, without its style and its pictures."""
    page = re.sub(r"<style>.*?</style>", "<style></style>", page, flags=re.DOTALL)
    page = html.unescape(re.sub(r'base64,[^"]*', "base64,", page))
    return [part.strip() for part in re.split(r"(<[^>]*>)", page) if part.strip()]
