"""What is small on disk and large when read ends with one message, in 2 GiB of memory."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from megatron_ultralong.data.read.record import read_text
from megatron_ultralong.data.tokenize.folder_template import TemplateProcess
from megatron_ultralong.evaluation.local.conversation import read_rows
from megatron_ultralong.program.errors import InputError
from tests.data.bombs import CHATS, DOCUMENTS, GIB, MIB, TEMPLATES, TOKENIZERS, write_sparse
from tests.data.run_commands import forget_peak, peak

ROOT = Path(__file__).parent.parent.parent
MOST = 2 * GIB
QUICK = (
    "line.jsonl.gz",
    "array.json.gz",
    "text.txt.zst",
    "lists.jsonl.gz",
    "letters.txt.gz",
    "cell.parquet",
)
"""Of the documents; the others come with the faults."""


class Outcome(NamedTuple):
    status: int
    said: str
    peak: int
    seconds: float

    def check(self, name: str, message: str) -> None:
        logging.info("%s: %.0f MiB, %.1f s of processor time", name, self.peak / MIB, self.seconds)
        assert self.peak <= MOST, (name, self.peak)
        assert self.status == 2, self.said
        assert "Traceback" not in self.said
        (line,) = [line for line in self.said.splitlines() if line.startswith("ultralong")]
        assert len(line) < 1000
        assert re.search(message, line), line


def run(folder: Path, commands: list[list[str]]) -> list[Outcome]:
    """Command lines in one process of their own, one after the other."""
    (folder / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.run_commands", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Outcome(*found) for found in json.loads((folder / "outcomes.json").read_text())]


def prepare(verb: str, tokenizer: Path, folder: Path, source: Path) -> list[str]:
    template = ["--chat-template", "plain"] if verb == "prepare chat" else []
    return [
        *verb.split(), "--source", f"s={source}", "--tokenizer", str(tokenizer),
        "--output", str(folder / f"{source.name}-rows"), "--seq-length", "4096", *template,
    ]  # fmt: skip


def check_all(verb: str, bombs: dict, names: list[str], tokenizer: Path, folder: Path) -> None:
    for name in names:
        bombs[name][0](folder / name)
        assert (folder / name).stat().st_blocks * 512 < 16 * MIB, name
    outcomes = run(folder, [prepare(verb, tokenizer, folder, folder / name) for name in names])
    for name, outcome in zip(names, outcomes, strict=True):
        outcome.check(name, bombs[name][1])
        assert not (folder / f"{name}-rows").exists()


def test_documents(tokenizer_folder: Path, tmp_path: Path) -> None:
    check_all("prepare", DOCUMENTS, list(QUICK), tokenizer_folder, tmp_path)


@pytest.mark.faults
def test_all_other_documents(tokenizer_folder: Path, tmp_path: Path) -> None:
    check_all(
        "prepare",
        DOCUMENTS,
        [name for name in DOCUMENTS if name not in QUICK],
        tokenizer_folder,
        tmp_path,
    )


@pytest.mark.faults
def test_conversations(tokenizer_folder: Path, tmp_path: Path) -> None:
    check_all(
        "prepare chat",
        CHATS,
        [n for n in CHATS if not n.endswith("parquet")],
        tokenizer_folder,
        tmp_path,
    )


@pytest.mark.faults
def test_conversations_in_parquet(tokenizer_folder: Path, tmp_path: Path) -> None:
    check_all(
        "prepare chat",
        CHATS,
        [n for n in CHATS if n.endswith("parquet")],
        tokenizer_folder,
        tmp_path,
    )


@pytest.mark.parametrize(
    "text", [pytest.param(t, marks=pytest.mark.faults if "7 **" in t else ()) for t in TEMPLATES]
)
def test_templates(text: str) -> None:
    messages = [{"role": "user", "content": "a"}]
    with (
        pytest.raises(InputError, match=TEMPLATES[text]) as caught,
        TemplateProcess(text, "the folder") as process,
    ):
        process.render(messages=messages, bos_token="", eos_token="")
    assert str(caught.value).startswith("the chat template in the folder cannot be rendered (")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("read", "name", "message"),
    [
        (
            lambda path: list(read_rows(path, ("input",))),
            "b.jsonl",
            r"b\.jsonl:1: a line of more than",
        ),
        (read_text, "hay.txt", r"hay\.txt has more than 83,886,080 bytes"),
    ],
)
def test_files_of_evaluation(tmp_path: Path, read: Any, name: str, message: str) -> None:
    write_sparse(tmp_path / name, b'{"question": "')
    forget_peak()
    before = peak()
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)
    assert peak() - before <= GIB // 2


def test_tokenizers(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    commands = []
    for name, (write, _) in TOKENIZERS.items():
        (tmp_path / f"of {name}").mkdir()
        for copied in tokenizer_folder.iterdir():
            shutil.copy(copied, tmp_path / f"of {name}")
        if name == "tokenizer.model":
            (tmp_path / f"of {name}" / "tokenizer.json").unlink()
        write(tmp_path / f"of {name}" / name)
        commands.append(prepare("prepare", tmp_path / f"of {name}", tmp_path, tmp_path / "a.txt"))
    for name, outcome in zip(TOKENIZERS, run(tmp_path, commands), strict=True):
        outcome.check(name, rf"{name} has .*{TOKENIZERS[name][1]}")
