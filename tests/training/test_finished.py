"""A start of a run that has nothing left: told before any rank starts, and before torch loads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_ultralong.checkpoint.disk.folder import iteration_folder, iterations, write_latest
from megatron_ultralong.checkpoint.disk.stored_iteration import COMMON_FILE, confirms
from megatron_ultralong.checkpoint.formats.torch_dist import check_iteration
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.exit_status import STATUS_VARIABLE
from megatron_ultralong.training.saving.finished import NOTHING_DONE, STATUS_FILE
from tests.checkpoint.verbs import OPENS, refusal
from tests.command_line import status_and_output
from tests.models import TEXT, prepare_rows
from tests.patience import patience
from tests.training.chats import write_chat_model, write_chats

_PROGRAM = """
import contextlib, io, json, sys
from megatron_ultralong.cli import main

for words in json.loads(sys.argv[1]):
    said, status = io.StringIO(), 0
    with contextlib.redirect_stdout(said):
        try:
            main(words)
        except SystemExit as end:
            status = end.code
    slow = [name for name in ("torch", "megatron", "transformers") if name in sys.modules]
    print(json.dumps([said.getvalue(), status, slow]))
"""
_LINE = "the run is at iteration 2, "
VERBS = ["pretrain", "sft"]
Ended = tuple[int, str]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    write_chat_model(folder, max_position_embeddings=256)
    prepare_rows(folder, (TEXT * 2 + str(n) for n in range(300)), folder / "hf", 128)
    write_chats(folder, 60)
    return folder


def words_of(verb: str, folder: Path, save: Path, total: int = 2) -> list[str]:
    recipe, data = {"pretrain": ("small", "rows"), "sft": ("demo-sft-cpu", "chats")}[verb]
    own = ["--global-batch-size", "4", "--context-parallel-size", "1"]
    words = [verb, recipe, "--load", str(folder / "base"), "--data-path", str(folder / data)]
    return [*words, "--save", str(save), "--train-iters", str(total), *own]


@pytest.fixture
def call(warm_environment: dict[str, str]) -> Callable[..., Ended]:
    """Status of a program, and what it has said."""

    return lambda *words: status_and_output(words, 200, env=warm_environment)


@pytest.mark.parametrize("verb", VERBS)
def test_it_is_told_before_a_rank_starts(
    verb: str, inputs: Path, tmp_path: Path, call: Callable[..., Ended]
) -> None:
    save, status_file = tmp_path / "run", tmp_path / "status"
    words = words_of(verb, inputs, save)
    status, said = call("ultralong", *words)
    assert status == 0, said
    before = {path: path.read_bytes() for path in save.rglob("*") if path.is_file()}
    starts = [words, [*words, "--ranks", "2"], [*words_of(verb, inputs, save, 1), "--ranks", "2"]]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(starts)],
        env={**os.environ, STATUS_VARIABLE: str(status_file)},
        capture_output=True,
        text=True,
        check=True,
        timeout=patience(100),
    )
    states = ("complete", "complete", "past train_iters (1)")
    for line, state in zip(done.stdout.splitlines(), states, strict=True):
        said, status, slow = json.loads(line)
        first, *changes, last = said.splitlines()
        assert (first, last) == (f"{_LINE}{state}: --train-iters above 2 trains on", NOTHING_DONE)
        # that follows from one iteration
        assert {change.split()[-5] for change in changes} <= {"optimizer.lr_warmup_iters"}
        assert not changes or state != "complete"
        assert (status, slow) == (0, [])
    assert status_file.read_text() == "0\n"
    status, said = call("ultralong", *words, "--lr", "1e-3", "--weight-decay", "0.2")
    assert (status, said.splitlines()[-1]) == (0, NOTHING_DONE)
    for name, now in (("lr", "0.001"), ("weight_decay", "0.2")):
        told = f"changed since the start before, without effect: optimizer.{name} was "
        assert told in said
        assert f", is {now}\n" in said.split(told)[1]
    assert {path: path.read_bytes() for path in save.rglob("*") if path.is_file()} == before
    status, said = call("torchrun", "--nproc-per-node", "2", "-m", "megatron_ultralong", *words)
    assert status == 0, said
    told = f"{_LINE}complete: --train-iters above 2 trains on; the ranks only check that"
    assert 0 <= said.index(told) < said.index("starting 2 ranks: loading libraries"), said
    assert NOTHING_DONE in said


def test_a_stale_status_and_a_damaged_checkpoint(
    inputs: Path, tmp_path: Path, call: Callable[..., Ended]
) -> None:
    """A status of another end gives way; a checkpoint that is not whole is made again by ranks."""
    save = tmp_path / "run"
    words = [*words_of("pretrain", inputs, save), "--save-interval", "1"]
    assert call("ultralong", *words)[0] == 0
    (save / STATUS_FILE).write_text("75\n")
    status, said = call("ultralong", *words)
    assert (status, said.splitlines()[-1]) == (0, NOTHING_DONE)
    assert (save / STATUS_FILE).read_text() == "0\n"
    for damaged in sorted((save / "iter_0000002").glob("*.distcp"))[:1]:
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
    status, said = call("ultralong", *words)
    assert status == 0
    assert "the checkpoint of iteration 2 is refused" in said
    assert "resumed at iteration 1 of 2" in said
    write_latest(save, 1)  # a run that was set back has something left
    (status, said), there = call("ultralong", *words), iterations(save)
    assert (status, there) == (0, [1, 2])
    assert "resumed at iteration 1 of 2" in said


@pytest.fixture(scope="module")
def run(inputs: Path, warm_environment: dict[str, str]) -> Path:
    """Of two iterations, with a checkpoint of each."""
    save = inputs / "two"
    words = [*words_of("pretrain", inputs, save), "--save-interval", "1"]
    status, said = status_and_output(["ultralong", *words], 200, env=warm_environment)
    assert status == 0, said
    return save


def renamed(run: Path, copy: Path, number: int = 5) -> Path:
    """A copy whose latest checkpoint, of iteration 2, is called another one."""
    shutil.copytree(run, copy)
    iteration_folder(copy, 2).rename(iteration_folder(copy, number))
    write_latest(copy, number)
    return copy


def message_of(copy: Path, number: int = 5) -> str:
    return (
        f"{iteration_folder(copy, number)} is named after iteration {number}, and iteration 2 was "
        f"saved in it: name it iter_0000002 again, and write 2 into {copy}/latest_"
    )


@pytest.mark.parametrize("verb", OPENS)
def test_a_checkpoint_that_was_renamed_is_not_believed(
    verb: str, inputs: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = renamed(run, tmp_path / "copy")
    assert message_of(copy) in refusal(capsys, OPENS[verb](inputs, str(copy)))


@pytest.mark.parametrize("latest", [5, 1])
@pytest.mark.parametrize("is_link", [False, True], ids=["copy", "link"])
def test_a_copy_or_a_link_beside_the_right_one_is_told(
    run: Path, tmp_path: Path, is_link: bool, latest: int
) -> None:
    """The fix names the file of the latest only where that names the wrong folder."""
    copy = shutil.copytree(run, tmp_path / "copy")
    wrong = iteration_folder(copy, 5)
    if is_link:
        wrong.symlink_to("iter_0000002")
    else:
        shutil.copytree(iteration_folder(copy, 2), wrong)
    write_latest(copy, latest)
    with pytest.raises(InputError, match="is there, too: move iter_0000005 away") as found:
        check_iteration(wrong)
    written = f"away, and write 2 into {copy}/latest_checkpointed_iteration.txt"
    assert str(found.value).endswith(written if latest == 5 else "away")


@pytest.mark.parametrize("total", [2, 5, 9])
def test_a_run_whose_checkpoint_was_renamed_is_not_resumed(
    total: int, inputs: Path, run: Path, tmp_path: Path, call: Callable[..., Ended]
) -> None:
    """With iterations left or without: it said that nothing was left to do, by the name."""
    copy = renamed(run, tmp_path / "copy")
    words = words_of("pretrain", inputs, copy, total)
    for more in ([], ["--ranks", "2"], ["--dry-run"]):
        status, said = call("ultralong", *words, *more)
        assert status == 2, said
        assert said.count(message_of(copy)) == 1, said
        assert NOTHING_DONE not in said
    iteration_folder(copy, 5).rename(iteration_folder(copy, 2))
    write_latest(copy, 2)
    status, said = call("ultralong", *words_of("pretrain", inputs, copy))
    assert (status, said.splitlines()[-1]) == (0, NOTHING_DONE), said


def test_the_look_without_torch_says_what_the_reading_says(run: Path, tmp_path: Path) -> None:
    """What does not confirm the name is left to the ranks, whatever it is."""
    for number in (1, 2):
        assert [i for i in range(4) if confirms(iteration_folder(run, number), i)] == [number]
    check_iteration(iteration_folder(run, 2))
    for number in (1, 3, 20):
        folder = iteration_folder(tmp_path, number)
        shutil.copytree(iteration_folder(run, 2), folder)
        with pytest.raises(InputError, match=rf"named after iteration {number}, and iteration 2 "):
            check_iteration(folder)
    shutil.copytree(iteration_folder(run, 2), tmp_path / "release")  # weights without a run
    check_iteration(tmp_path / "release")
    file = iteration_folder(tmp_path, 20) / COMMON_FILE
    content = file.read_bytes()
    for cut in range(0, len(content), max(1, len(content) // 200)):
        for damaged in (content[:cut], content[cut:], content[:cut] + b"\xff" + content[cut + 1 :]):
            file.write_bytes(damaged)
            assert not confirms(file.parent, 20)
    flipped = bytearray(content)
    for bit in range(8 * len(content)):
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        assert not confirms(file.parent, 20)
        flipped[bit // 8] ^= 1 << bit % 8
    file.unlink()
    assert not confirms(file.parent, 20)
