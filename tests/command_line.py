"""What tests of the command line share: a model and rows, and commands that must be refused."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong import cli
from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from tests.models import TEXT, prepare_rows, write_llama
from tests.patience import patience

DOCUMENTS = [TEXT * 3 + str(n) for n in range(200)]


def write_inputs(folder: Path) -> None:
    """A converted model with 64 positions, and rows of 128 tokens."""
    write_llama(folder / "hf", num_hidden_layers=2)
    import_checkpoint(ImportConfig(folder / "hf", folder / "megatron"))
    prepare_rows(folder, DOCUMENTS, folder / "hf", 128)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command that must be refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("ultralong: error: ")
    assert error.count("\n") == 1, "one message, no traceback"
    return error


def status_and_output(words: Sequence[str], seconds: float, **options: Any) -> tuple[int, str]:
    """Exit status and all output of a program, within seconds of a quiet machine.

    ``options`` are those of ``subprocess.run``.
    """
    done = subprocess.run(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=patience(seconds),
        **options,
    )
    return done.returncode, done.stdout


def pretrain_words(inputs: Path, *more: str) -> tuple[str, ...]:
    """A run of the demo's recipe over them."""
    return (
        *("pretrain", "demo-cpu", "--load", str(inputs / "megatron"), "--train-iters", "10"),
        *("--data-path", str(inputs / "rows"), "--save", str(inputs / "saved")),
        *("--seq-length", "128", "--original-max-position-embeddings", "64", *more),
    )
