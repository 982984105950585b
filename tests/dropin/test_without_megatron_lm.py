"""The drop-in where there is no Megatron-LM: what is missing, and how to get it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_ultralong.dropin.__main__ import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "pretrain_gpt_ultralong.py"


def launcher() -> None:
    sys.argv = ["dropin", str(EXAMPLE), "--help"]
    main()


def example() -> None:
    sys.argv = [str(EXAMPLE)]
    runpy.run_path(str(EXAMPLE), run_name="__main__")


@pytest.mark.parametrize("way", [launcher, example])
def test_without_megatron_lm_it_says_how_to_get_it(
    way: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "megatron.training", None)  # as where there is none
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(SystemExit) as end:
        way()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.startswith("ultralong: error: megatron.training is not in this environment")
    assert "first on PYTHONPATH" in said
    assert "pip install -e '.[megatron-lm]'" in said
    assert said.count("\n") == 1


def test_a_rank_of_the_example_ends_with_one_line(tmp_path: Path) -> None:
    """In a process of its own, before whatever a script imports: no traceback."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['megatron.training'] = None"
    )
    path = os.pathsep.join([str(tmp_path), str(EXAMPLE.parents[1])])
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--spec", "megatron_ultralong.spec", "ring_local_spec"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "ultralong: error: megatron.training is not in this environment" in done.stderr
