"""A disk that takes no more, at any place of any file: one message, and nothing left.

``RLIMIT_FSIZE`` stands for a quota: there is room by what the file system says.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_ultralong import cli
from tests.command_line import write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    write_inputs(folder)
    return folder


@contextlib.contextmanager
def files_of(num_bytes: int) -> Iterator[None]:
    """Inside, no file of this process grows beyond ``num_bytes``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


VERBS = {
    "import": "convert import {inputs}/hf {out}",
    "export": "convert export {inputs}/megatron {out}",
    "meta": "convert export {inputs}/megatron {out} --format meta",
    "gguf": "convert export {inputs}/megatron {out}.gguf --format gguf",
    "prepare": "prepare --source own={inputs}/documents.jsonl --tokenizer {inputs}/hf "
    "--output {out} --seq-length 128",
}


@pytest.mark.parametrize("name", VERBS)
def test_it_is_told(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words = VERBS[name].format(inputs=inputs, out=tmp_path / "out").split()
    num_refused = 0
    for num_bytes in (1_000, 3_000, 20_000, 100_000, 300_000, None):
        status = 0
        capsys.readouterr()
        try:
            with files_of(num_bytes) if num_bytes else contextlib.nullcontext():
                cli.main(words)
        except SystemExit as end:
            status = int(end.code or 0)
        if not status:
            break
        num_refused += 1
        said = capsys.readouterr().err.splitlines()[-1]
        left = [str(path) for path in tmp_path.rglob("*")]
        assert (status, left) == (2, []), num_bytes
        assert said.startswith("ultralong: error: ")
        assert " cannot be written: [Errno " in said
        assert "make room on the disk" in said
    assert num_refused >= 3
    assert list(tmp_path.iterdir())
