"""The report of three checkpoints with five benchmarks each, in a real browser.

Screenshots of both widths are kept in ``build/screenshots``.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from megatron_ultralong import cli
from megatron_ultralong.evaluation.options import NeedleConfig
from megatron_ultralong.evaluation.results.result import (
    LOSS,
    ScoreCell,
    depth_row,
    mean_cell,
    plain_values,
    position_row,
)
from tests.docs.blocks import ROOT
from tests.evaluation.results import loss_of, needle_result, saved, task_result
from tests.patience import patience
from tools.page_width.browser import PROGRAMS, program
from tools.page_width.devtools import CUT_TEXT, open_browser
from tools.page_width.verdict import PHONE, SCREEN

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(program() is None, reason=f"none of {', '.join(PROGRAMS)} is installed"),
]
SCREENSHOTS = ROOT / "build" / "screenshots"
LENGTHS = tuple(4096 * 2**k for k in range(6))
MARKUP = (
    "<script>window.ran = 1</script>$\\frac{",
    "\"><img src=x onerror='window.ran=1'> \u202e" + "n" * 400,
    "javascript:alert(1) {{ 7 * 7 }} \u901a\u4e49",
)
NAMES = {"plain": ("before", "after", "tuned"), "markup": MARKUP}


def write_results(folder: Path, name: str, max_positions: int, task: str = "vt") -> None:
    """Five benchmarks of a checkpoint that is worse beyond its positions."""
    rng = random.Random(max_positions)

    def shares(length: int, number: int, parts: int = 1) -> list[float]:
        share = 0.97 if length <= max_positions else 0.97 * (max_positions / length)
        drawn = range(parts)
        return [sum(rng.random() < share for _ in drawn) / parts for _ in range(number)]

    tasks = ("niah_multikey_2", task, "cwe")
    cells = [mean_cell(t, f"{n}", shares(n, 50, 4)) for n in LENGTHS for t in tasks]
    ruler = task_result("ruler", name, max_positions, {(t, "4096"): 0.0 for t in tasks})
    cells_of = {"ruler": (ruler, cells)}
    sets = ("hotpotwikiqa_mixup", "factrecall_en")
    cells = [mean_cell(s, f"{n}k", shares(2048 * n, 60, 9)) for n in (16, 64, 256) for s in sets]
    lv_eval = task_result("lv_eval", name, max_positions, {(s, "16k"): 0.0 for s in sets})
    cells_of["lv_eval"] = (lv_eval, cells)
    subjects = ("abstract_algebra", "law")
    choices = task_result("choices", name, max_positions, {(s, "accuracy"): 0.0 for s in subjects})
    cells_of["choices"] = (choices, [mean_cell(s, "accuracy", shares(1, 200)) for s in subjects])
    depths = (0.0, 50.0, 100.0)
    config = plain_values(NeedleConfig(lengths=LENGTHS, depths=depths))
    needle = dataclasses.replace(needle_result(name, max_positions, {512: 1}), config=config)
    cells = [mean_cell(depth_row(d), f"{n}", shares(n, 10)) for n in LENGTHS for d in depths]
    cells_of["needle"] = (needle, cells)
    loss = loss_of(name, max_positions, (3.0,) * 4)
    edges = zip((0, *LENGTHS[:-1]), LENGTHS, strict=True)
    cells = [
        ScoreCell(position_row(a, b), LOSS, b - a, 3.0 + (b > max_positions) + rng.random(), 0.02)
        for a, b in edges
    ]
    cells_of["loss"] = (loss, cells)
    for kind, (result, found) in cells_of.items():
        made = dataclasses.replace(result, cells=tuple(found))
        saved(made, folder / f"{max_positions}" / f"{kind}.json")


@pytest.mark.parametrize("case", NAMES)
def test_no_text_is_cut_and_no_name_runs(case: str, tmp_path: Path) -> None:
    names = NAMES[case]
    task = "vt" if case == "plain" else "<b onmouseover='window.ran=1'>" + "t" * 200
    for name, positions in zip(names, (8192, 65_536, 131_072), strict=True):
        write_results(tmp_path / "runs", name, positions, task)
    output = tmp_path / "report"
    words = ["evaluate", "report", str(tmp_path / "runs"), "--output", str(output)]
    cli.main([*words, "--title", "Evaluation of " + " and ".join(names)])
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with open_browser(patience(200)) as browser:
        for width in (SCREEN, PHONE):
            browser.open(output / "index.html", width)
            browser.screenshot(SCREENSHOTS / f"report-{case}-{width}.png")
            assert browser.evaluate(CUT_TEXT) == []
            scrolling = "[...document.querySelectorAll('.scroll')].filter(each => "
            scrolling += "each.scrollWidth > each.clientWidth + 1).length"
            assert browser.evaluate(scrolling) == 0, "a table has to be moved sideways"
            # Nothing but the page itself is asked for, nothing runs, nothing speaks.
            asked = [url for url in browser.requests if not url.startswith("data:image/png")]
            assert asked == [(output / "index.html").as_uri()]
            assert browser.said == []
            assert browser.evaluate("window.ran === undefined && document.scripts.length === 0")
            assert browser.evaluate("document.querySelectorAll('img').length") == 5
            complete = (
                "[...document.images].every(each => each.complete && each.naturalWidth > 600)"
            )
            assert browser.evaluate(complete)
            headings = browser.evaluate(
                "[...document.querySelectorAll('h2')].map(h => h.innerText)"
            )
            assert len(headings) == 6
            text = browser.evaluate("document.body.innerText")
            assert "Effective length" in text
            assert all(name.replace("\u202e", "\\u202e") in text for name in names)


def test_what_is_cut_or_runs_is_found(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><title>bad</title><body><table><tr><td style='max-width: 30px; "
        "white-space: nowrap'>over the border of it<td>b</table><p style='overflow: hidden; "
        f"width: 50px'>{'x' * 99}<p>{'y' * 300}<script>console.log('said')</script>"
    )
    with open_browser(patience(100)) as browser:
        browser.open(page, PHONE)
        found = " ".join(browser.evaluate(CUT_TEXT))
        assert len(browser.said) == 1
    for what in ("wide", 'over its border: "over the', 'cut: "xxx', 'outside the screen: "yyy'):
        assert what in found
