"""The status that the ranks of a job leave for its batch script."""

from __future__ import annotations

import errno
import itertools
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from megatron_ultralong.cli.dispatch import main
from megatron_ultralong.doctor import diagnosis
from megatron_ultralong.doctor.finding import Finding
from megatron_ultralong.program.ending import ends_with_message
from megatron_ultralong.program.errors import (
    ClosedFileError,
    FailingDiskError,
    InputError,
    RunStopped,
)
from megatron_ultralong.program.rank_values import from_main_rank
from tests.patience import patience

Rank = Callable[..., int]


@pytest.fixture
def status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the batch script names."""
    path = tmp_path / "exit_status"
    monkeypatch.setenv("ULTRALONG_EXIT_STATUS", str(path))
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    return path


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> Rank:
    """Ends a rank of the job as an exception does, or None; returns its own exit status."""

    def end(number: int, error: BaseException | None = None) -> int:
        monkeypatch.setenv("RANK", str(number))
        try:
            with ends_with_message():
                if error is not None:
                    raise error
        except SystemExit as caught:
            return caught.code if isinstance(caught.code, int) else int(bool(caught.code))
        except RuntimeError:
            return 1
        return 0

    return end


def left(path: Path) -> str | None:
    assert not [one for one in path.parent.iterdir() if one != path], "left aside"
    return path.read_text().strip() if path.exists() else None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SystemExit(1), "1"),
        (SystemExit(2), "2"),
        (SystemExit("a text"), "1"),
        (InputError("bad"), "2"),
        # a library that stops halfway in order, and what comes from outside
        (SystemExit(), None),
        (SystemExit(0), None),
        (SystemExit(141), None),
        (KeyboardInterrupt(), None),
        (RuntimeError("a crash"), None),
        # files: what a person has to change, and a disk that may be well when the job starts again
        (PermissionError(errno.EACCES, "closed", "rows.bin"), "2"),
        (FileNotFoundError(errno.ENOENT, "gone", "rows.bin"), "2"),
        (OSError(errno.EIO, "failing", "rows.bin"), None),
        (OSError(errno.ESTALE, "failing", "rows.bin"), None),
    ],
)
@pytest.mark.parametrize("number", [0, 1])
def test_what_one_rank_leaves(
    status: Path, rank: Rank, monkeypatch: pytest.MonkeyPatch, number: int,
    error: BaseException, expected: str | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(time, "sleep", lambda _: None)
    own = rank(number, error)
    assert left(status) == expected
    if expected is not None:
        assert own == int(expected)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EIO, FailingDiskError), (errno.EACCES, ClosedFileError), (errno.ENOENT, InputError)],
)
def test_what_the_main_rank_finds_is_of_its_kind_on_all(
    number: int, kind: type[InputError]
) -> None:
    def read() -> None:
        raise OSError(number, os.strerror(number), "rows.bin")

    with pytest.raises(kind) as caught:
        from_main_rank(read, is_main=True)
    sent = pickle.loads(pickle.dumps(caught.value))  # as it comes to the others
    assert (type(sent), str(sent)) == (kind, str(caught.value))
    assert "rows.bin cannot be opened" in str(sent)


ENDS: dict[str, BaseException | None] = {
    "well": None,
    "stopped": RunStopped(75, "told to"),
    "sick": SystemExit(1),
    "mistyped": SystemExit(2),
}


@pytest.mark.parametrize("others", list(itertools.product(ENDS, repeat=2)))
@pytest.mark.parametrize("main_rank", ["well", "stopped"])
def test_a_failure_of_one_rank_is_not_replaced_by_what_others_agreed_on(
    status: Path, rank: Rank, monkeypatch: pytest.MonkeyPatch, others: Sequence[str],
    main_rank: str,
) -> None:  # fmt: skip
    """In whichever order they end; all have begun before."""
    for order in itertools.permutations([(0, main_rank), *enumerate(others, 1)]):
        status.unlink(missing_ok=True)
        monkeypatch.setattr("megatron_ultralong.program.ending.forget_status", lambda: None)
        for number, how in order:
            rank(number, ENDS[how])
        failures = [how for number, how in order if number and how in ("sick", "mistyped")]
        words = {"well": "0", "stopped": "75", "sick": "1", "mistyped": "2"}
        assert left(status) == words[(failures or [main_rank])[-1]], order


def test_where_the_disk_knows_no_hard_links(
    status: Path, rank: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    rank(0)
    assert left(status) == "0"
    rank(1, SystemExit(2))
    assert left(status) == "2"


def test_after_a_crash_there_is_no_status_of_an_earlier_job(
    status: Path, rank: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    for old in ("0", "75", "2"):
        status.write_text(f"{old}\n")
        rank(1, RuntimeError("a crash"))
        assert left(status) == old, "the main rank alone removes it"
        rank(0, RuntimeError("a crash"))
        assert left(status) is None
    status.write_text("2\n")
    assert rank(0) == 0
    assert left(status) == "0", "an old failure does not stand in the way"
    monkeypatch.delenv("RANK")  # a dry run beside the ranks is not the job
    with ends_with_message():
        pass
    assert left(status) == "0"


def test_another_rank_may_have_failed_before_the_main_one_begins(
    status: Path, rank: Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is younger than torchrun, the parent of ranks, is of this job."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    rank(1, SystemExit(2))
    assert rank(0, RuntimeError("ended by torchrun")) == 1
    assert left(status) == "2"
    os.utime(status, (1e9, 1e9))
    assert rank(0, RuntimeError("a crash")) == 1
    assert left(status) is None
    rank(1, SystemExit(2))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # torchrun has started the ranks again
    assert rank(0) == 0
    assert left(status) == "0"


PARENT = """
import subprocess, sys
words = [sys.executable, "-c", sys.argv[1]]
sys.exit(subprocess.run(words).returncode)
"""
CHILD = """
import os
import pickle
from megatron_ultralong.program.exit_status import _process_start
print(os.getppid(), _process_start(os.getppid()))
"""


def test_the_start_of_a_process_is_on_the_clock_of_files(tmp_path: Path) -> None:
    before = tmp_path / "before"
    before.touch()
    time.sleep(0.05)  # a tick of the kernel is 0.01 s
    done = subprocess.run(
        [sys.executable, "-c", PARENT, CHILD],
        capture_output=True,
        text=True,
        check=True,
        timeout=patience(60),
    )
    after = tmp_path / "after"
    after.touch()
    began = float(done.stdout.split()[1])
    assert before.stat().st_mtime < began < after.stat().st_mtime


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "ruler", "--mistyped"],
        ["generate", "--max-new-tokens", "many"],
        ["doctor", "--mistyped"],
        ["evaluate", "rulr"],
    ],
)
@pytest.mark.parametrize("number", ["0", "3"])
def test_a_mistyped_command_leaves_2(
    status: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], number: str
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setenv("RANK", number)
    with pytest.raises(SystemExit) as end:
        main(words)
    assert (end.value.code, left(status)) == (2, "2")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("sick", [0, 1])
def test_doctor_is_not_well_where_one_rank_is_not(
    status: Path, monkeypatch: pytest.MonkeyPatch, sick: int, order: tuple[int, int]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")  # they began together
    for number in order:
        level = "problem" if number == sick else "ok"
        findings = [Finding(level, "disk", "as found", "fix it" if number == sick else "")]
        monkeypatch.setattr(diagnosis, "_findings", lambda _, found=findings: iter(found))
        monkeypatch.setenv("RANK", str(number))
        if number == sick:
            with pytest.raises(SystemExit, match="1"):
                main(["doctor"])
        else:
            main(["doctor"])
    assert left(status) == "1"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pretrain", "small", "--ranks", "2", "--mistyped"], "2"),
        (["evaluate", "loss", "--ranks=2", "--load", "gone", "--data-path", "gone"], "2"),
        (["generate", "--ranks", "5000"], "2"),
        (["evaluate", "rulr", "--ranks", "2"], "2"),
        (["pretrain", "small", "--ranks", "2", "--mistyped", "--dry-run"], "75"),
        (["pretrain", "small", "--mistyped"], "75"),
    ],
)
def test_what_starts_ranks_leaves_2_for_what_it_refuses(
    status: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str
) -> None:
    """Not the status of an earlier job; a dry run, and a command that starts none, is no job."""
    monkeypatch.delenv("RANK", raising=False)
    status.write_text("75\n")
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert left(status) == expected


def test_ranks_that_crash_at_their_start_leave_no_earlier_status(
    status: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> int:
        raise RuntimeError("no process")

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("megatron_ultralong.cli.dispatch._checked", crash)
    status.write_text("75\n")
    with pytest.raises(RuntimeError):
        main(["generate", "--ranks", "2"])
    assert left(status) is None
