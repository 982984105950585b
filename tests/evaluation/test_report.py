"""The page and the terminal hold what the result files hold, and say what was left out."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from megatron_ultralong.evaluation.report.page import print_report, write_report
from megatron_ultralong.evaluation.report.report import Check, Report, gather_report
from megatron_ultralong.evaluation.report.table import Cell, with_best
from megatron_ultralong.evaluation.results.interval import Estimate, wilson
from megatron_ultralong.evaluation.results.result import versions
from megatron_ultralong.evaluation.ruler.parameters import TASKS as RULER_TASKS
from megatron_ultralong.program.errors import InputError
from tests.evaluation.results import loss_results, needle_result, passkey_result, saved, task_result

SMALL = 2_800_000
LENGTHS = ("4096", "131072", "524288")


def ruler_scores(base: float, fall: float) -> dict[tuple[str, str], float]:
    """A score for every task and length, all different."""
    return {
        (task, length): base - fall * k - 0.125 * j
        for k, length in enumerate(LENGTHS)
        for j, task in enumerate(RULER_TASKS)
    }


class Page(HTMLParser):
    """Texts of the tables by heading, pictures, and every address that the page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.pictures: dict[str, bytes] = {}
        self.words: list[str] = []
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.best: list[str] = []
        self._heading = ""
        self._classes: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            data = values["src"].removeprefix("data:image/png;base64,")
            self.pictures[values["alt"]] = base64.b64decode(data, validate=True)
        if tag in ("meta", "img", "source"):
            return
        self.open.append(tag)
        self._classes.append(values.get("class") or "")
        if tag in ("h2", "h3"):
            self._heading = ""
        if tag == "table":
            self.tables.append((self._heading, []))
        if tag == "tr":
            self.tables[-1][1].append([])
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self._classes.pop()

    def handle_data(self, data):
        data = data.replace("\xa0", " ")  # where figures are not broken
        self.words.append(data)
        if self.open and self.open[-1] in ("h2", "h3"):
            self._heading += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][1][-1][-1] += data
        if self._classes and "best" in self._classes[-1].split():
            self.best.append(data)

    def table(self, heading: str) -> list[list[str]]:
        """The table under a heading, from its header line."""
        found = [rows for title, rows in self.tables if title.startswith(heading)]
        assert found, (heading, [title for title, _ in self.tables])
        return found[0]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a base and its extension on every benchmark, as the verbs write them."""
    root = tmp_path_factory.mktemp("results")
    saved(loss_results(), root / "loss" / "loss.json")
    retrieved = {"before": {512: 10, 1024: 0, 2048: 1}, "after": {512: 9, 1024: 9, 2048: 8}}
    for name, positions, base, fall in (("before", 512, 90, 40), ("after", 2048, 95, 5)):
        folder = root / name
        saved(passkey_result(name, positions, retrieved[name]), folder / "passkey" / "passkey.json")
        saved(needle_result(name, positions, retrieved[name]), folder / "needle" / "needle.json")
        scores = ruler_scores(base, fall)
        saved(task_result("ruler", name, positions, scores, seed=42), folder / "r" / "ruler.json")
        scores = {("passkey", f"{positions}"): base - 0.5, ("code_run", f"{positions}"): fall + 0.5}
        result = task_result("infinitebench", name, positions, scores, num_truncated=7)
        saved(result, folder / "infinitebench.json")
        scores = {("arc", "accuracy"): base / 2, ("arc", "loss"): fall / 10}
        saved(task_result("choices", name, positions, scores), folder / "choices.json")
    (root / "report.json").write_text('{"kind": "report", "format_version": 1}')
    (root / "config.json").write_text('{"model_type": "llama"}')
    (root / "broken.json").write_text("{")  # not ours
    return root


@pytest.fixture(scope="module")
def written(results: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Path, str]:
    """The page, its folder, and what the terminal showed."""
    folder = tmp_path_factory.mktemp("report") / "report"
    report = gather_report([results], command="ultralong evaluate report results")
    write_report(report, folder)
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    print_report(report, console)
    text = (folder / "index.html").read_text(encoding="utf-8")
    for part in ("@import", "url(", "<script", "http:", "https:"):
        assert part not in text
    assert "prefers-color-scheme: dark" in text
    return Page(text), folder, console.export_text()


def test_the_page_needs_no_other_file(written):
    page, folder, _ = written
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == [
        "choices-accuracy.png",
        "choices-loss.png",
        "infinitebench.png",
        "loss.png",
        "needle.png",
        "passkey.png",
        "ruler.png",
    ]
    files = {path.read_bytes() for path in folder.glob("*.png")}
    assert set(page.pictures.values()) == files
    assert all(png.startswith(b"\x89PNG\r\n\x1a\n") for png in files)
    assert "Loss by position of before, after" in page.pictures
    anchors = [address for address in page.addresses if not address.startswith("data:image/png;")]
    assert anchors == [f"#section-{number}" for number in range(6)]
    assert "Evaluation of before and after" in page.words


def test_figures_are_those_of_the_files(written, results):
    page, _, printed = written
    values = json.loads((results / "loss" / "loss.json").read_text())
    rows = page.table("Loss by position")
    assert rows[0] == ["positions", "before, trained for 512", "after, trained for 2,048"]
    for k, row in enumerate(rows[1:5]):
        for place, result in enumerate(values["results"], 1):
            cell = result["cells"][k]
            shown = f"{cell['score']:.3f} ± {cell['error']:.3f} ({math.exp(cell['score']):.1f})"
            assert row[place] == shown
            assert shown in printed
    for kind, title in (("passkey", "Passkey retrieval"), ("needle", "Needle retrieval")):
        rows = page.table(title)
        for place, name in enumerate(("before", "after"), 1):
            values = json.loads((results / name / kind / f"{kind}.json").read_text())
            cells = values["results"][0]["cells"]
            for row in rows[1:]:
                length = row[0].removesuffix(" tokens").replace(",", "")
                scores = [cell["score"] for cell in cells if cell["column"] == length]
                mean, worst = sum(scores) / len(scores), min(scores)
                ends = wilson(mean, 20)
                interval = f"[{ends.low:.0f}, {ends.high:.0f}]"
                assert row[place] == f"{mean:.0f} % {interval} ({worst:.0f} %)"
                assert row[place] in printed


def test_scores_by_task_and_length_are_those_of_the_files(written, results):
    page, _, printed = written
    tables = {title: [t for name, t in page.tables if name == title] for title in ("By task",)}
    by_task = tables["By task"]  # RULER, InfiniteBench, choices
    means = page.table("Mean of the tasks")
    titles = {"4K": "4096", "128K": "131072", "512K": "524288"}
    for place, name in enumerate(("before", "after")):
        (values,) = json.loads((results / name / "r" / "ruler.json").read_text())["results"]
        scores = {(c["row"], c["column"]): c["score"] for c in values["cells"]}
        assert len(by_task[0]) == 1 + len(scores)
        for task, _, length, *shown in by_task[0][1:]:
            assert shown[place] == f"{scores[task, titles[length]]:.1f}"
        for length, *shown in means[1:]:
            assert shown[place].startswith(f"{values['means'][titles[length]]:.1f} [")
            assert shown[place] in printed
        (values,) = json.loads((results / name / "infinitebench.json").read_text())["results"]
        for row, cell in zip(by_task[1][1:], values["cells"], strict=False):
            assert row[2 + place] == f"{cell['score']:.1f}"
    assert by_task[1][0][2:] == ["before, cut at 512", "after, cut at 2,048"]
    assert by_task[1][-1][:2] == ["mean", ""]


def test_the_better_figure_is_marked(written):
    page, _, printed = written
    # Lower is better for a loss, higher for all else.
    for best in ("3.200 ± 0.010 (24.5)", "3.140 ± 0.010 (23.1)", "80 % [58, 92] (80 %)"):
        assert best in page.best
        assert f"{best} *" in printed
    for worse in ("3.240 ± 0.010 (25.5)", "6.000 ± 0.010 (403.4)", "10 % [3, 30] (10 %)"):
        assert worse not in page.best
        assert worse in printed
    # What the samples do not set apart: 100 and 90 % of 20 prompts, 45.0 and 47.5 of 100 questions,
    # losses without a standard error.
    for noise in ("100 % [84, 100] (100 %)", "45.0", "47.5", "4.0", "0.5"):
        assert noise not in page.best


def marked(*estimates: tuple[float, float, float] | None, lower_is_better: bool = False) -> str:
    """A letter for each cell, a capital where it is marked: ``aB``."""
    cells = [Cell(letter) for letter, _ in zip("abc", estimates, strict=False)]
    found = [Estimate(*one) if one else None for one in estimates]
    line = with_best(cells, found, lower_is_better=lower_is_better)
    return "".join(cell.text.upper() if cell.is_best else cell.text for cell in line)


def test_what_the_noise_does_not_set_apart_is_not_marked():
    assert marked((1, 1, 1), (1, 1, 1), None) == "abc"
    assert marked(None, (2, 1, 3), None) == "abc"
    assert marked((2, 1, 3), (3, 2, 4)) == "ab"  # sqrt(2) of noise, 1 of difference
    assert marked((2, 1, 3), (3.5, 2.5, 4.5)) == "aB"
    assert marked((2, 1, 3), (3.5, 2.5, 4.5), lower_is_better=True) == "Ab"
    # The second best is not set apart from the best: both stand out from the third.
    assert marked((1, 0, 2), (9, 8, 10), (10, 9, 11)) == "aBC"
    assert marked((1, -math.inf, math.inf), (9, 8.9, 9.1)) == "ab"


def test_conditions_stand_under_every_figure(written):
    page, _, _ = written
    tables = [rows for _, rows in page.tables if rows[0][0] == "condition"]
    assert len(tables) == 6
    for rows in tables:
        found = {row[0]: row[1:] for row in rows[1:]}
        assert found["checkpoint"] == ["before", "after"]
        assert found["folder"] == ["runs/before", "runs/after"]
        assert found["trained positions"] == ["512", "2,048"]
        assert found["date"] == ["2026-01-31T12:00:00+00:00"]
        assert found["versions"] == ["megatron-ultralong 0.1.0, torch 2.13.0"]
        assert found["model"][0].startswith("8,030,261,248 parameters, weights ")
        assert "samples" in found
    ruler, infinitebench = tables[3], tables[4]
    assert ["--seed", "42"] in ruler
    assert ["notes", "prompt template base, seed 42"] in ruler
    assert ["samples", "100 questions a cell, 3,900 in all"] in ruler
    assert ["truncated prompts", "14 of 200"] in infinitebench
    assert ["samples", "100 questions a cell, 100 in all"] in tables[5]  # two scores of each


def test_the_report_holds_all_results_as_json(written):
    _, folder, _ = written
    values = json.loads((folder / "report.json").read_text())
    assert (values["kind"], values["passed"]) == ("report", True)
    (notice,) = values["notices"]
    assert notice.endswith("broken.json cannot be read as JSON: left out")
    assert len(values["results"]) == 12
    first = values["results"][0]
    assert (first["label"], first["benchmark"]) == ("before", "position_loss")
    assert first["result"]["cells"][2]["score"] == 4.5


@pytest.fixture
def report(tmp_path) -> Report:
    """A report of a run, with all that a run adds."""
    saved(loss_results(), tmp_path / "in" / "loss.json")
    return gather_report(
        [tmp_path / "in"],
        title="From 512 to 2,048 <tokens>",
        summary="A small Llama & its extension.",
        command="make demo",
        settings={"rope_scaling": "yarn", "train_iters": 60},
        checks=(
            Check("weights of import and export", "21 of 21 equal", "equal", True),
            Check("peak memory", "2.50 GiB", "at most 6 GiB", True),
        ),
        wall_times={"prepare": 10.0, "pretrain": 120.0},
        peak_memory_gib=2.5,
        machine="2 CPU cores",
    )


def test_checks_recipe_and_times_of_a_run_stand_in_it(report, tmp_path):
    page = Page(write_report(report, tmp_path / "report").read_text(encoding="utf-8"))
    shown = " ".join(page.words)
    for text in (
        "From 512 to 2,048 <tokens>",
        "A small Llama & its extension.",
        "make demo",
        "Checks: 2 of 2 passed",
        "21 of 21 equal",
        "rope_scaling",
        "130.0 s, 2.50 GiB at the peak",
        "2 CPU cores",
        versions()["python"],
    ):
        assert text in shown


def test_a_failed_check_shows_everywhere(report, tmp_path):
    failed = Check("peak memory", "7.00 GiB", "at most 6 GiB", False)
    report = dataclasses.replace(report, checks=(report.checks[0], failed))
    assert not report.passed
    text = write_report(report, tmp_path / "report").read_text(encoding="utf-8")
    assert "1 of 2 passed" in text
    assert text.count('<span class="verdict fail">') == 1
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    print_report(report, console)
    printed = console.export_text()
    assert printed.count("FAIL") == 1
    assert "at most 6 GiB" in printed


def test_a_report_is_not_written_over(report, tmp_path):
    (tmp_path / "in" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 2 entries, loss\.json among them"):
        write_report(report, tmp_path / "in")
    assert (tmp_path / "in" / "notes.txt").read_text() == "mine"


def test_nothing_is_left_behind_by_a_report_that_fails(report, tmp_path):
    broken = dataclasses.replace(report, settings={"lr": object()})
    with pytest.raises(ValueError, match="Unable to serialize"):
        write_report(broken, tmp_path / "report")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
