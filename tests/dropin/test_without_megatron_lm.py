"""The drop-in where there is no Megatron-LM: what is missing, and how to get it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from megatron_ultralong.dropin.__main__ import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "pretrain_gpt_ultralong.py"


def test_without_megatron_lm_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "megatron.training", None)  # as where there is none
    monkeypatch.setattr(sys, "argv", ["dropin", str(EXAMPLE), "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.startswith("ultralong: error: megatron.training is not in this environment")
    assert "first on PYTHONPATH" in said
    assert said.count("\n") == 1
