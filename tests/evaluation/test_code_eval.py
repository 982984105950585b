"""Which programs the metric ``code_eval`` of examples/harness counts as right."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import types
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT


@pytest.fixture
def metric(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module; what it needs of ``evaluate`` and ``datasets``, which may be missing, is empty.

    ``passes`` alone is called, which uses neither.
    """
    evaluate = types.ModuleType("evaluate")
    evaluate.Metric = evaluate.MetricInfo = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "evaluate", evaluate)
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    file = ROOT / "examples" / "harness" / "code_eval" / "code_eval.py"
    spec = importlib.util.spec_from_file_location("code_eval", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("program", "is_right"),
    [
        ("def one():\n    return 'é'\n\nassert one() == 'é'", True),
        ("assert False", False),
        ("import sys\nsys.exit()\nassert False", False),
        ("import os\nos._exit(0)\nassert False", False),
        ("raise SystemExit(0)", False),
        ("if __name__ == '__main__':\n    assert False", True),  # as of the hub's metric
        ("mark = program = 1\nassert 'sys' not in globals()", True),
        ("while True:\n    pass", False),
        ("not python", False),
        ("half = '\ud800'", False),
    ],
)
def test_a_program_is_right_when_it_has_come_to_its_end(
    metric: types.ModuleType, program: str, is_right: bool
) -> None:
    # 2 s: a start of Python, on a loaded machine.
    assert metric.passes(program, 2.0) is is_right


def test_what_a_program_leaves_is_removed_whatever_it_is(
    metric: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders in each other, more than Python's own removal goes down, and one that is closed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    nested = "import os\nfor _ in range(3000):\n    os.mkdir('a')\n    os.chdir('a')\n"
    assert metric.passes(nested, 20.0)
    closed = "import os\nos.makedirs('a/b')\nos.chmod('a', 0)\nos.symlink('/', 'root')\n"
    assert metric.passes(closed, 20.0)
    assert not [*tmp_path.iterdir()]
