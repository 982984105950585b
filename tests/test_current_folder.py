"""The folder that a command is called in does not belong to the program; and it may be gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import pretrain_words, write_inputs
from tests.patience import patience

ROOT = Path(__file__).parent.parent
SCRIPT = """\
import sys
from megatron_ultralong.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
"""
"""As ``pip`` writes ``ultralong``: it does not look for modules in the current folder."""
LIBRARIES = ("torch", "numpy", "megatron", "tokenizers", "yaml", "rich", "tyro", "safetensors")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    write_inputs(folder)
    (folder / "ultralong.py").write_text(SCRIPT)
    (folder / "here").mkdir()
    for name in {*sys.stdlib_module_names, *LIBRARIES}:
        (folder / "here" / f"{name}.py").write_text(f"raise SystemExit('{name} of the folder')\n")
    return folder


def called(inputs: Path, line: str, *words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(inputs / "ultralong.py")]
    return subprocess.run(
        ["bash", "-c", f'{line} "$@"', "", *program, *words],
        cwd=inputs / "here",
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=patience(200),
        check=False,
    )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no PYTHONSAFEPATH")
@pytest.mark.parametrize(
    "verb", ["pretrain", "prepare", pytest.param("doctor", marks=pytest.mark.slow)]
)
def test_nothing_is_imported_from_there(inputs: Path, tmp_path: Path, verb: str) -> None:
    """By ranks and other processes too: ``random.py`` may be the user's own."""
    source = f"own={inputs / 'documents.jsonl'}"
    words = {
        "pretrain": (*pretrain_words(inputs, "--train-iters", "2"), "--ranks", "2"),
        "prepare": (
            *("prepare", "--source", source, "--tokenizer", str(inputs / "hf"), "--workers", "2"),
            *("--seq-length", "64", "--output", str(tmp_path / "rows")),
        ),
        "doctor": ("doctor",),
    }[verb]
    done = called(inputs, "", *words)
    assert "of the folder" not in done.stdout + done.stderr
    assert done.returncode == 0 or verb == "doctor", done.stderr
    if verb == "doctor":
        assert "ok       ring attention" in done.stdout


def test_a_folder_that_is_gone_is_told(inputs: Path) -> None:
    done = called(inputs, "mkdir gone; cd gone; rmdir ../gone;", "plan", "small", "--gpus", "1")
    assert done.returncode == 2
    assert done.stderr.startswith("ultralong: error: the current folder is not there any more: ")
    assert done.stderr.count("\n") == 1
