"""A killed evaluation continues where it was, and no other one is mistaken for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.journal import open_journal, sample_key
from megatron_ultralong.program.owner_record import is_owner_file
from tests.ranks import run_on_ranks

IDENTITY = {"checkpoint": "abc", "precision": "bf16"}


class KilledError(Exception):
    """Stands for whatever ends a process early."""


def evaluate(output: Path, numbers: range, *, stop_at: int | None = None) -> tuple[list[int], int]:
    """Squares of ``numbers``, and how many of them had to be computed."""
    squares, computed = [], 0
    with open_journal(output, "squares", IDENTITY, is_main=True) as journal:
        for number in numbers:
            key = sample_key(number=number)
            entry = journal.entries.get(key)
            if entry is None:
                if number == stop_at:
                    raise KilledError
                computed += 1
                entry = journal.add(key, {"square": number**2, "text": "四\u2028\n"})
            squares.append(entry["square"])
        assert journal.folder is not None
        (journal.folder / "squares.json").write_text(json.dumps(squares))
    return squares, computed


def test_a_killed_evaluation_goes_on_and_gets_its_name_at_the_end(tmp_path: Path) -> None:
    output, partial = tmp_path / "out", tmp_path / ".out.partial"
    with pytest.raises(KilledError):
        evaluate(output, range(9), stop_at=5)
    assert not output.exists()
    names = {path.name for path in partial.iterdir() if not is_owner_file(path)}
    assert names == {"work.json", "finished.jsonl"}
    # A later try may ask for more samples.
    assert evaluate(output, range(12)) == ([n * n for n in range(12)], 7)
    assert not partial.exists()
    names = ["evaluation.json", "samples.jsonl", "squares.json"]
    assert sorted(path.name for path in output.iterdir()) == names
    with pytest.raises(InputError, match="holds 3 entries"):
        evaluate(output, range(12))


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    folder = tmp_path_factory.mktemp("journal")
    with pytest.raises(KilledError):
        evaluate(folder / "out", range(9), stop_at=5)
    partial = folder / ".out.partial"
    return (partial / "work.json").read_bytes(), (partial / "finished.jsonl").read_bytes()


@settings(max_examples=25)
@given(st.data())
def test_a_journal_cut_at_any_byte_is_taken_up(tmp_path_factory, unfinished, data) -> None:
    identity, samples = unfinished
    cut = data.draw(st.integers(0, len(samples)))
    folder = tmp_path_factory.mktemp("cut")
    (folder / ".out.partial").mkdir()
    (folder / ".out.partial" / "work.json").write_bytes(identity)
    (folder / ".out.partial" / "finished.jsonl").write_bytes(samples[:cut])
    complete = samples[:cut].count(b"\n")
    assert evaluate(folder / "out", range(9)) == ([n * n for n in range(9)], 9 - complete)
    lines = (folder / "out" / "samples.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["square"] for line in lines] == [n * n for n in range(9)]


def test_a_damaged_line_is_evaluated_again(tmp_path: Path, unfinished, capsys) -> None:
    identity, samples = unfinished
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "work.json").write_bytes(identity)
    lines = samples.splitlines(keepends=True)
    lines[1], lines[3] = b"\x00" * 40 + b"\n", b"[1]\n"
    (tmp_path / ".out.partial" / "finished.jsonl").write_bytes(b"".join(lines))
    assert evaluate(tmp_path / "out", range(9)) == ([n * n for n in range(9)], 6)
    assert "2 of 5 lines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "identity", "message"),
    [
        (
            "cubes",
            IDENTITY,
            r"out\.partial was started by .*its kind was 'squares', now it is 'cubes'",
        ),
        (
            "squares",
            {**IDENTITY, "precision": "fp32"},
            "its precision was 'bf16', now it is 'fp32'",
        ),
        ("squares", {**IDENTITY, "seed": 1}, "its seed was nothing, now it is 1; repeat the first"),
    ],
)
def test_a_folder_of_another_evaluation_is_refused(tmp_path, kind, identity, message) -> None:
    with pytest.raises(KilledError):
        evaluate(tmp_path / "out", range(9), stop_at=5)
    before = (tmp_path / ".out.partial" / "finished.jsonl").read_bytes()
    with (
        pytest.raises(InputError, match=message),
        open_journal(tmp_path / "out", kind, identity, is_main=True),
    ):
        pass
    assert (tmp_path / ".out.partial" / "finished.jsonl").read_bytes() == before


def test_a_folder_in_use_and_a_strange_one_are_refused(tmp_path: Path) -> None:
    with (
        open_journal(tmp_path / "out", "squares", IDENTITY, is_main=True),
        pytest.raises(InputError, match=r"--output .*out is in use by evaluate \(process"),
        open_journal(tmp_path / "out", "squares", IDENTITY, is_main=True),
    ):
        pass
    for name, file, text, said in (
        ("mine", "notes.txt", "mine", r"mine\.partial holds notes\.txt and no work\.json"),
        ("bad", "work.json", "{", r"work\.json is not JSON .*: remove .*bad\.partial to"),
    ):
        (tmp_path / f".{name}.partial").mkdir()
        (tmp_path / f".{name}.partial" / file).write_text(text)
        with (
            pytest.raises(InputError, match=said),
            open_journal(tmp_path / name, "squares", IDENTITY, is_main=True),
        ):
            pass


def test_without_output_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_journal("", "squares", IDENTITY, is_main=True) as journal:
        assert journal.folder is None
        assert journal.add("a", {"values": (1, 2)}) == {"values": [1, 2]}
        assert journal.entries.get("a") == {"values": [1, 2]}
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_of_names_and_values() -> None:
    ids = np.arange(5)
    keys = [
        sample_key(task="a", prompt=ids),
        sample_key(task="b", prompt=ids),
        sample_key(task="a", prompt=ids.astype(np.int32)),
        sample_key(task="a", prompt=ids[:4]),
        sample_key(task="a", prompt=ids.tolist()),
        sample_key(task="a", other=ids),
        sample_key(task="a"),
    ]
    assert len(set(keys)) == len(keys)
    assert sample_key(prompt=np.arange(10)[::2] // 2, task="a") == keys[0]
    assert sample_key(stop={"x": 1, "y": 2.5}) == sample_key(stop={"y": 2.5, "x": 1})


def on_two_ranks(output: Path) -> tuple[int, bool, str]:
    """Resumed samples and whether there is a folder; then the refusal of another evaluation."""
    import torch.distributed as dist

    is_main = dist.get_rank() == 0
    with open_journal(output, "squares", IDENTITY, is_main=is_main) as journal:
        seen = journal.num_resumed, journal.folder is not None
    dist.barrier()
    try:
        with open_journal(output, "squares", IDENTITY, is_main=is_main):
            return *seen, ""
    except InputError as error:
        return *seen, str(error)


def test_all_ranks_see_the_same_journal(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        evaluate(tmp_path / "out", range(9), stop_at=5)
    first, second = run_on_ranks(2, on_two_ranks, tmp_path / "out")
    assert first[:2] == (5, True)
    assert second[:2] == (5, False)
    assert first[2] == second[2]
    assert "holds 2 entries" in first[2]
