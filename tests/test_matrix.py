"""The version matrix: what it reads off a run of tests, and what stands of it in the pages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import patience
from tools.version_matrix.environment import NotInstalledError, find_python
from tools.version_matrix.leg import LEGS, Leg
from tools.version_matrix.results import Result, read_report
from tools.version_matrix.table import BEGIN, END, long_table, short_table, write_between

ROOT = Path(__file__).parent.parent
SOME_TESTS = """
import pytest

def test_right(): pass
def test_wrong(): assert False
@pytest.fixture
def broken(): raise OSError
def test_broken(broken): pass
@pytest.mark.skip(reason="no GPU")
def test_elsewhere(): pass
"""
VERSIONS = {"python": "3.12.1", "megatron-core": "0.19.2", "torch": "2.13", "transformers": "5"}


def test_a_report_is_read_as_pytest_writes_it(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(SOME_TESTS)
    lacking = 'import pytest\npytest.importorskip("no_such_module", reason="no wheel has it")\n'
    (tmp_path / "test_lacking.py").write_text(lacking)
    words = [sys.executable, "-m", "pytest", "-q", "--junitxml=report.xml", "--rootdir=."]
    subprocess.run(words, cwd=tmp_path, check=False, capture_output=True, timeout=patience(60))
    passed, failed, left_out = read_report(tmp_path / "report.xml")
    assert passed == 1
    assert failed == ["test_some::test_wrong", "test_some::test_broken"]
    assert left_out == {"no GPU": 1, "no wheel has it": 1}
    assert read_report(tmp_path / "none.xml") == (0, [], {})


def test_a_leg_without_a_passed_test_has_not_passed() -> None:
    def result(passed: int, failed: list[str]) -> Result:
        return Result(VERSIONS, passed, failed, {}, 1.0, 2, "2026-01-01")

    assert result(3, []).has_passed
    assert not result(0, []).has_passed
    assert not result(3, ["tests::one"]).has_passed


def test_tables_stand_between_their_marks(tmp_path: Path) -> None:
    leg = Leg("3.12", "0.19.2", ("tests/mcore",))
    result = Result(VERSIONS, 1200, ["tests::one"], {"no GPU": 7}, 61.4, 2, "2026-01-01")
    assert short_table([(leg, result)]).splitlines()[-1] == (
        "| 3.12 | 0.19.2 | a selection | 1,200 passed, **1 failed**, 7 left out |"
    )
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{BEGIN}\nold\n{END}\n\nMore\n")
    write_between(page, long_table([(leg, result)]))
    text = page.read_text()
    assert text.startswith(f"# Page\n\n{BEGIN}\n| Python |")
    assert text.endswith(f"{END}\n\nMore\n")
    assert "old" not in text
    assert "61 s on 2 cores" in text
    assert "left out, no GPU: 7 on 3.12-0.19.2" in text
    assert "failed on 3.12-0.19.2: `tests::one`" in text


@pytest.mark.parametrize("page", ["README.md", "docs/versions.md"])
def test_the_pages_have_a_row_for_every_leg_and_none_failed(page: str) -> None:
    table = (ROOT / page).read_text().split(BEGIN)[1].split(END)[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()[3:]]
    rows = [row for row in rows if len(row) > 2]
    found = [(".".join(row[1].split(".")[:2]), row[2]) for row in rows]
    assert found == [(leg.python, leg.megatron_core) for leg in LEGS]
    assert "failed" not in table


def test_a_python_is_the_one_that_answers_with_its_version() -> None:
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = find_python(here, ["/no/such/python"])
    asked = [found, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    assert subprocess.run(asked, capture_output=True, text=True).stdout.strip() == here
    with pytest.raises(NotInstalledError, match=r"is a Python 3\.99: name one by --python"):
        find_python("3.99", [])
