"""What a plan says of values that may be slips."""

from __future__ import annotations

import pytest

from megatron_ultralong import cli


def test_what_may_be_a_slip_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", "llama3.1-8b", "--gpus", "8"]
    few = "warning: rows of 128 tokens, where the model has 131,072 positions; 128K is 131,072\n"
    for more, is_few, is_high in (
        (("--seq-length", "128"), True, False),
        (("--seq-length", "8K", "--lr", "3e-1"), False, True),
    ):
        cli.main([*words, *more])
        shown = capsys.readouterr().out
        assert (few in shown, "warning: lr 0.3 is above 0.01" in shown) == (is_few, is_high)
