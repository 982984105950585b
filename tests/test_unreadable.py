"""Every file and folder that a verb reads, in turn one that this user may not open: one message."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong import cli
from megatron_ultralong.data.read.record import unreadable
from megatron_ultralong.evaluation.results.file import write_results
from megatron_ultralong.program.ending import ends_with_message
from megatron_ultralong.program.errors import refused_file
from tests.evaluation.results import AFTER, BEFORE, loss_of
from tests.models import TEXT, prepare_rows
from tests.patience import patience
from tests.ranks import start_forkserver
from tests.rights import as_ordinary_user, closed
from tests.training.chats import write_chat_model, write_chats
from tests.warm.server import open_streams, run_module

Without = Callable[[Path], contextlib.AbstractContextManager[None]]
Command = tuple[str, str]
"""Words of a command, and the inputs that it reads."""

LIGHT: dict[str, Command] = {
    "inspect": ("convert inspect base", "base"),
    "inspect a model": ("convert inspect hf", "hf"),
    "prepare": (
        "prepare --source a=texts --tokenizer hf --output out --seq-length 64 --length-sampling "
        "none --valid-fraction 0",
        "texts hf",
    ),
    "dry run": (
        "pretrain small --load base --data-path rows --save new --train-iters 4 --dry-run",
        "base rows",
    ),
    "plan": ("plan small --load base --data-path rows --gpus 1", "base rows"),
    "report": ("evaluate report results", "results"),
}
"""Those that take no more than a tenth of a second."""
_TRAIN = "pretrain small --train-iters 4 --data-path rows --load base --save"
HEAVY: dict[str, Command] = {
    "import": ("convert import hf out", "hf"),
    "export": ("convert export base out", "base"),
    "verify": ("convert verify base hf", "base hf"),
    "prepare chat": (
        "prepare chat --source own=own.jsonl --tokenizer hf --output out --seq-length 128 "
        "--too-long drop --valid-fraction 0.3",
        "own.jsonl hf",
    ),
    "generate": (
        "generate --load base --prompt-file prompt.txt --max-new-tokens 2",
        "base prompt.txt",
    ),
    "passkey": (
        "evaluate passkey --load base --lengths 256 --depths 50 --num-samples 1 --output out",
        "base",
    ),
    "loss": ("evaluate loss --load base hf --data-path rows --output out", "base hf rows"),
    "pretrain": (f"{_TRAIN} out", "base rows"),
    "ranks": (f"{_TRAIN} out --ranks 2", "base/release rows/train.bin"),
    "resume": (f"{_TRAIN} copy", "copy"),
    "config": ("pretrain --config run/config.yaml --dry-run", "run/config.yaml"),
    "sft": (
        "sft demo-sft-cpu --load base --data-path chats --train-iters 1 --save out "
        "--context-parallel-size 1",
        "base chats",
    ),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read."""
    folder = tmp_path_factory.mktemp("unreadable")
    write_chat_model(folder, max_position_embeddings=256, num_hidden_layers=2)
    prepare_rows(folder, (TEXT * 2 + str(n) for n in range(300)), folder / "hf", 128)
    (folder / "texts" / "more").mkdir(parents=True)
    (folder / "prompt.txt").write_text(TEXT)
    (folder / "texts" / "a.txt").write_text(TEXT * 20)
    (folder / "texts" / "more" / "b.jsonl").write_text(json.dumps({"text": TEXT * 20}))
    write_chats(folder, 40)
    for name, losses in (("before", BEFORE), ("after", AFTER)):
        (folder / "results" / name).mkdir(parents=True)
        write_results(folder / "results" / name / "results.json", [loss_of(name, 2048, losses)])
    return folder


@pytest.fixture(scope="module")
def with_run(inputs: Path) -> Path:
    """The same, and ``run``, of two iterations."""
    words = [*_TRAIN.split(), "run", "--train-iters", "2"]
    assert ended(words, inputs, inputs / "said") == 0, (inputs / "said").read_text()
    return inputs


def child(words: list[str], folder: Path, said: Path, hidden: Path | None) -> None:
    """Be ``ultralong words``; ``said``: its output, and beside it what it opened."""
    output = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    open_streams()
    os.chdir(folder)
    opened = os.open(said.with_suffix(".opened"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_of_files = event in ("open", "os.listdir", "os.scandir")
        if is_of_files and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            os.write(opened, f"{path}\n".encode())

    sys.addaudithook(hook)
    sys.argv = ["ultralong", *words]
    with as_ordinary_user() if hidden is None else closed(hidden):
        run_module("megatron_ultralong")


def ended(words: list[str], folder: Path, said: Path, hidden: Path | None = None) -> int | None:
    """The status of a command in a process of its own."""
    start_forkserver()
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=child, args=(words, folder, said, hidden))
    mode = hidden.stat().st_mode if hidden is not None else 0
    said.write_text("")
    process.start()
    process.join(patience(200))
    if hidden is not None and hidden.exists():  # where the process ended without a word
        hidden.chmod(mode)
    return process.exitcode


def parts(folder: Path, names: str) -> Iterator[Path]:
    """All files and folders of inputs."""
    for name in names.split():
        yield folder / name
        if (folder / name).is_dir():
            yield from sorted((folder / name).rglob("*"))


def fault(
    status: int | None,
    text: str,
    path: Path,
    folder: Path,
    was_opened: bool,
    reason: str = "Permission denied",
) -> str:
    """What is wrong with how a command ended whose file ``path`` was closed; empty: nothing."""
    errors = [line for line in text.splitlines() if line.startswith("ultralong: error: ")]
    if "Traceback" in text:
        return f"a traceback: {text}"
    if status == 0:
        return "it was opened, and nothing is said" if was_opened and path.name not in text else ""
    if (status, len(errors)) != (2, 1):
        return f"status {status}: {text}"
    shown = str(path.relative_to(folder))
    if reason not in errors[0] or shown not in errors[0]:
        return f"{shown} or the reason is not named: {errors[0]}"
    is_closed = reason == "Permission denied"
    if is_closed and any(word in errors[0] for word in ("damaged", "truncated", "cut short")):
        return f"a closed file is no damage: {errors[0]}"
    return ""


def refused(inputs: Path, capsys: pytest.CaptureFixture[str], without: Without, reason: str) -> int:
    """How often the quick verbs are refused, in this process, with each of their files so."""
    wrong, num_refused = [], 0
    for name, (words, read) in LIGHT.items():
        for path in [None, *parts(inputs, read)]:
            status = 0
            capsys.readouterr()
            try:
                with without(path) if path else contextlib.nullcontext():
                    cli.main(words.split())
            except SystemExit as end:
                status = int(end.code or 0)
            finally:
                shutil.rmtree(inputs / "out", ignore_errors=True)
            said = capsys.readouterr().err
            if path is None:
                assert status == 0, f"{name}: {said}"
                continue
            num_refused += status == 2
            if found := fault(status, said, path, inputs, was_opened=False, reason=reason):
                wrong.append(f"{name}, {path}: {found}")
    assert not wrong, "\n".join(wrong)
    return num_refused


def test_closed_files_end_with_a_message(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(inputs)
    assert refused(inputs, capsys, closed, "Permission denied") > 40


_broken: set[str] = set()
"""Files on a disk that fails."""


def fail(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook, which cannot be taken away again: whatever Python opens asks it."""
    if _broken and event in ("open", "os.listdir", "os.scandir"):
        name = arguments[0]
        if isinstance(name, str | os.PathLike) and os.path.abspath(name) in _broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO), os.fspath(name))


@contextlib.contextmanager
def failing(path: Path) -> Iterator[None]:
    """Inside, the disk fails where a file or folder is opened."""
    _broken.add(str(path))
    try:
        yield
    finally:
        _broken.clear()


def test_files_of_a_failing_disk_end_with_a_message(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(inputs)
    sys.addaudithook(fail)
    assert refused(inputs, capsys, failing, "Input/output error") > 30


@pytest.mark.faults
@pytest.mark.parametrize("name", [*LIGHT, *HEAVY])
def test_every_closed_file_ends_with_a_message(with_run: Path, tmp_path: Path, name: str) -> None:
    """Of every verb, in processes of their own; what a good run opens is not passed over."""
    (line, read), inputs = {**LIGHT, **HEAVY}[name], with_run
    words, said, wrong = line.split(), tmp_path / "said", []
    begin(inputs)
    assert ended(words, inputs, said) == 0, said.read_text()
    opened = set(said.with_suffix(".opened").read_text().splitlines())
    begin(inputs)
    paths = list(parts(inputs, read))
    assert any(str(path) in opened for path in paths)
    for path in paths:
        begin(inputs)
        status = ended(words, inputs, said, path)
        if found := fault(status, said.read_text(), path, inputs, str(path) in opened):
            wrong.append(f"{path.relative_to(inputs)}: {found}")
    assert not wrong, "\n".join(wrong)


@contextlib.contextmanager
def read_only(paths: list[Path]) -> Iterator[None]:
    """Inside, nobody may write them: a model that many share."""
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.parametrize("name", ["import", "export", "prepare chat", "pretrain", "sft"])
def test_what_comes_from_a_shared_folder_is_the_users(
    with_run: Path, tmp_path: Path, name: str
) -> None:
    """It can be written on, and removed, whatever the rights of what it was made of."""
    line, read = HEAVY[name]
    shutil.rmtree(with_run / "out", ignore_errors=True)
    with read_only(list(parts(with_run, read))):
        assert ended(line.split(), with_run, tmp_path / "said") == 0, (
            tmp_path / "said"
        ).read_text()
    written = list(parts(with_run, "out"))
    assert len(written) > 5
    assert [path for path in written if not path.stat().st_mode & 0o200] == []


def begin(folder: Path) -> None:
    """``out`` is not there, ``copy`` is a fresh one of ``run``."""
    for name in ("out", "copy"):
        shutil.rmtree(folder / name, ignore_errors=True)
    shutil.copytree(folder / "run", folder / "copy")


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.EACCES, "needs the right to a file"),
        (errno.EIO, "the disk or its server fails"),
        (errno.ESTALE, "the disk or its server fails"),
        (errno.EISDIR, "it is a folder"),
        (errno.ENOTDIR, "is a file: name a folder"),
        (errno.ELOOP, "lead back to themselves"),
        (errno.ENAMETOOLONG, "shorten it"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENOSPC, "make room"),
        (errno.EROFS, "can only be read"),
        (errno.ENXIO, "name another file"),
    ],
)
def test_every_refusal_is_told(
    capsys: pytest.CaptureFixture[str], number: int, way_out: str
) -> None:
    with pytest.raises(SystemExit) as end, ends_with_message():
        raise OSError(number, os.strerror(number), "a file")
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ultralong: error: a file cannot be opened ({os.strerror(number)}): ")
    assert way_out in said
    assert said.count("\n") == 1


def test_the_error_of_a_read_names_its_file() -> None:
    """It has no name of its own: that of ``/proc/self/mem`` at an address without memory."""
    with pytest.raises(OSError, match="Input") as caught, open("/proc/self/mem", "rb") as file:
        file.read(1)
    assert caught.value.filename is None
    message = str(refused_file(caught.value))
    assert message.startswith("/proc/self/mem cannot be opened (Input/output error): ")
    assert refused_file(OSError(errno.ECONNREFUSED, "no listener")) is None
    assert refused_file(OSError("a library's own")) is None


def test_the_trace_is_there_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULTRALONG_LOG", "DEBUG")
    with pytest.raises(PermissionError), ends_with_message():
        raise PermissionError(errno.EACCES, "Permission denied", "a file")


def test_a_record_that_the_system_refuses_is_not_cut_short() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "a")
    assert unreadable("a", error).error == "cannot be read (Permission denied)"
    assert unreadable("a", ValueError("an odd page")).error.endswith("is the file cut short?")
