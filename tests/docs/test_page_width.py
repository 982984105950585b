"""No page of the site, and no report, has to be moved sideways: seen in a real browser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ultralong import cli
from tests.docs.blocks import ROOT
from tests.patience import patience
from tools.page_width.browser import PROGRAMS, measure, program
from tools.page_width.verdict import PHONE, SCREEN, summary, wrong

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(program() is None, reason=f"none of {', '.join(PROGRAMS)} is installed"),
]
WIDE_PAGE = """<!DOCTYPE html><title>wide</title><body style="margin: 0">
<p style="width: 500px">wider than a phone</p>
<div style="overflow-x: auto"><table><tr><td style="min-width: 2000px">scrolls</table></div>"""
LONG_WORD = "<!DOCTYPE html><title>word</title><p style='position: absolute'>" + 300 * "x"


def test_the_site_and_a_report_fit_screen_and_phone(tmp_path: Path) -> None:
    site = tmp_path / "site"
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(site)]
    subprocess.run(words, cwd=ROOT, check=True, timeout=patience(300))
    results = [
        ROOT / "docs" / "smollm2" / "first" / f"{name}.json"
        for name in ("loss", "passkey", "needle")
    ]
    cli.main(["evaluate", "report", *map(str, results), "--output", str(tmp_path / "report")])
    folders = {"site": site, "report": tmp_path / "report"}
    found = measure(folders, (SCREEN, PHONE), patience(240))
    assert len(found) == 2 * len([*tmp_path.rglob("*.html")]) > 40
    assert all(each.height > 100 and each.title for each in found), "a page was not loaded"
    assert not wrong(found), "\n".join(wrong(found))


def test_what_is_too_wide_is_found(tmp_path: Path) -> None:
    (tmp_path / "wide.html").write_text(WIDE_PAGE)
    (tmp_path / "word.html").write_text(LONG_WORD)
    found = measure({"pages": tmp_path}, (SCREEN, PHONE), patience(60))
    assert summary(found) == (
        "1280 pixels: 1 of 2 pages overflow, 1 tables scroll; "
        "390 pixels: 2 of 2 pages overflow, 1 tables scroll"
    )
    lines = "\n".join(wrong(found))
    assert '/pages/wide.html at 390: 500 pixels wide: <p> "wider than a phone' in lines
    assert '/pages/wide.html at 1280: <table> "scrolls" is 2' in lines
