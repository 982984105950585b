"""What is shown of the messages of libraries, on the main rank and on others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import patience

SPEAKING = """
import logging, sys, warnings
from megatron_ultralong import cli
from megatron_ultralong.cli import dispatch

def speak(words):
    megatron = logging.getLogger("megatron.core.models")
    own = logging.getLogger("megatron_ultralong.x")
    megatron.warning("GPTModel IS DEPRECATED. GPTModel is only accepting critical bug fixes")
    megatron.warning("load_common is deprecated and will be removed in a future release.")
    megatron.warning("a weight is missing")
    megatron.warning("a log call is wrong", FutureWarning)
    megatron.error("a rank is lost")
    own.warning("own words")
    warnings.warn("Argument aux_data (position 17) cannot be converted to a JitArgument")
    warnings.warn("a kernel is slow")
    compile("x = 1 is 1", "a_library.py", "exec")

dispatch._run = speak
cli.main([])
"""
ALWAYS = {"a rank is lost", "own words"}
"""Of every rank."""
ONCE = {"a weight is missing", "a kernel is slow"}
"""Of the main rank."""
NEVER = {"GPTModel", "load_common", "aux_data", '"is" with'}
"""In a run whose user did not ask for them."""


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"RANK": "0"}, ALWAYS | ONCE),
        ({"RANK": "1"}, ALWAYS),
        ({"RANK": "1", "ULTRALONG_LOG": "DEBUG"}, ALWAYS | ONCE | NEVER),
        ({"RANK": "1", "PYTHONWARNINGS": "default"}, ALWAYS | ONCE | NEVER),
    ],
)
def test_libraries_speak_once_a_job(
    tmp_path: Path, variables: dict[str, str], shown: set[str]
) -> None:
    said = subprocess.run(
        [sys.executable, "-c", SPEAKING],
        env={"PATH": "", "PYTHONPATH": str(Path(__file__).parent.parent), **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=True,
    ).stderr
    for each in ALWAYS | ONCE | NEVER:
        assert (each in said) == (each in shown), (each, said)
