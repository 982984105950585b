"""A folder around the one that is meant, wherever a model, a tokenizer or rows are named.

And pointers of version control in the place of any file of a model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_ultralong.program.inner_folders import one_inside
from megatron_ultralong.program.pointers import POINTERS, pointer_of
from tests.command_line import refusal
from tests.models import TEXT, prepare_rows
from tests.training.chats import write_chat_model, write_chats

COMMIT, OLDER = "b" * 40, "c" * 40


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``hf``, ``base``, ``rows`` and ``chats``."""
    folder = tmp_path_factory.mktemp("inner")
    write_chat_model(folder)
    prepare_rows(folder, (TEXT * 2 + str(n) for n in range(100)), folder / "hf", 64)
    write_chats(folder, 60)
    return folder


def write_meta(folder: Path) -> None:
    """The names of Meta's files, which are looked at before what is in them."""
    folder.mkdir(parents=True)
    shape = {"dim": 64, "n_layers": 1, "n_heads": 4, "n_kv_heads": 4, "vocab_size": 336}
    (folder / "params.json").write_text(json.dumps({**shape, "norm_eps": 1e-5, "multiple_of": 32}))
    for name in ("consolidated.00.pth", "tokenizer.model"):
        (folder / name).write_bytes(b"x" * 2000)


def hub(folder: Path, inner: Path) -> Path:
    root = folder / "models--org--name"
    for commit in (COMMIT, OLDER):
        shutil.copytree(inner, root / "snapshots" / commit)
    for name in ("blobs", "refs"):
        (root / name).mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    return root


def hub_of_one(folder: Path, inner: Path) -> Path:
    root = hub(folder, inner)
    shutil.rmtree(root / "snapshots" / OLDER)
    (root / "refs" / "main").unlink()
    return root


def below(folder: Path, inner: Path) -> Path:
    shutil.copytree(inner, folder / "out" / "original")
    (folder / "out" / "README.md").write_text("x")
    return folder / "out"


def several(folder: Path, inner: Path) -> Path:
    for number in (500, 1000, 1500, 2000):
        shutil.copytree(inner, folder / "out" / f"checkpoint-{number}")
    return folder / "out"


KINDS: dict[Callable[[Path, Path], Path], str] = {
    hub: f"give its snapshot {{0}}/snapshots/{COMMIT}",
    hub_of_one: f"give its snapshot {{0}}/snapshots/{COMMIT}",
    below: "{0}/original has ",
    several: "({0}/checkpoint-2000, {0}/checkpoint-1500, {0}/checkpoint-1000 and 1 more)",
}
"""Makers of a folder around another one, and what is said of it."""
NAMED: dict[str, tuple[str, str]] = {
    "convert import": ("hf", "convert import {0} {1}"),
    "convert inspect": ("hf", "convert inspect {0}"),
    "convert verify": ("hf", "convert verify {0} {0}"),
    "convert export": ("base", "convert export {0} {1}"),
    "prepare": ("hf", "prepare --source a={2}/documents.jsonl --tokenizer {0} --seq-length 64 "
                "--output {1}"),
    "prepare chat": ("hf", "prepare chat --source a={2}/own.jsonl --tokenizer {0} --seq-length 64 "
                     "--output {1}"),
    "plan": ("base", "plan extend --model {0} --gpus 8"),
    "plan of a model": ("hf", "plan extend --model {0} --gpus 8"),
    "pretrain": ("base", "pretrain small --load {0} --data-path {2}/rows"),
    "pretrain over": ("rows", "pretrain small --load {2}/base --data-path {0}"),
    "sft": ("base", "sft demo-sft-cpu --load {0} --data-path {2}/chats"),
    "sft over": ("chats", "sft demo-sft-cpu --load {2}/base --data-path {0}"),
    "evaluate loss": ("base", "evaluate loss --load {0} --data-path {2}/rows"),
    "evaluate a model": ("hf", "evaluate passkey --load {0} --lengths 64"),
    "generate": ("base", "generate --load {0} --prompt x"),
}  # fmt: skip
"""What each verb names, and its command line: with the folder, a new one, and the inputs."""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("what", NAMED)
def test_the_folder_that_is_meant_is_named(
    what: str,
    kind: Callable[[Path, Path], Path],
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inner, line = NAMED[what]
    outer = kind(tmp_path, inputs / inner)
    said = refusal(capsys, *line.format(outer, tmp_path / "new", inputs).split())
    assert KINDS[kind].format(outer) in said


def test_metas_folder_is_found_too(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_meta(tmp_path / "Llama" / "original")
    said = refusal(capsys, "convert", "import", str(tmp_path / "Llama"), str(tmp_path / "new"))
    assert f"{tmp_path}/Llama/original has params.json: give that folder" in said


def test_a_whole_disk_is_not_searched(tmp_path: Path) -> None:
    """Four levels deep, hidden, behind a link, or behind ten thousand files: not found."""
    deep = tmp_path / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    (deep / "config.json").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config.json").touch()
    (tmp_path / "link").symlink_to(deep)
    assert one_inside(tmp_path, ("config.json",)) == ""
    assert one_inside(tmp_path / "gone", ("config.json",)) == ""
    assert "c/d has config.json" in one_inside(tmp_path / "a", ("config.json",))
    many = tmp_path / "many"
    many.mkdir()
    for number in range(10_001):
        (many / str(number)).touch()
    assert one_inside(many, ("config.json",)) == ""


@pytest.mark.parametrize("pointer", POINTERS, ids=lambda pointer: pointer.magic.decode())
def test_a_pointer_in_the_place_of_any_file_is_told(
    pointer: object, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(pointer, type(POINTERS[0]))
    text = pointer.magic + b"v1\noid sha256:00\nsize 9\n"
    assert pointer_of(text) == pointer
    write_meta(tmp_path / "meta")
    found = 0
    for source in (inputs / "hf", tmp_path / "meta"):
        for path in sorted(source.iterdir()):
            shutil.rmtree(tmp_path / "model", ignore_errors=True)
            shutil.copytree(source, tmp_path / "model")
            (tmp_path / "model" / path.name).write_bytes(text)
            said = refusal(
                capsys, "convert", "import", str(tmp_path / "model"), str(tmp_path / "new")
            )
            assert f"{path.name} is {pointer.name}" in said, said
            assert pointer.way_out in said
            found += 1
    assert found >= 6


def test_a_text_about_pointers_is_none() -> None:
    assert pointer_of(POINTERS[0].magic + b"x" * 2000) is None
    assert pointer_of(b"a " + POINTERS[0].magic) is None


def test_a_model_with_checkpoints_inside_is_itself_the_model(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of a trainer are of earlier iterations."""
    folder = tmp_path / "out"
    shutil.copytree(inputs / "hf", folder)
    shutil.copytree(inputs / "hf", folder / "checkpoint-500")
    said = refusal(capsys, "generate", "--load", str(folder), "--prompt", "x")
    assert f"make one with `ultralong convert import {folder} DST`" in said
    for file in folder.glob("tokenizer*"):
        file.unlink()
    said = refusal(capsys, "convert", "import", str(folder), str(tmp_path / "new"))
    assert "has no tokenizer.json or tokenizer.model; download the tokenizer too" in said
    assert "checkpoint-500" not in said
