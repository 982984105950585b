"""Which files of a source are read: folders hold litter, links go round."""

import dataclasses
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.pack.sampling import LengthSampling
from megatron_ultralong.data.prepare.documents import prepare
from megatron_ultralong.data.read.options import ReadOptions
from megatron_ultralong.data.read.sources import (
    HIDDEN,
    NOT_WANTED,
    REPEATED,
    ROWS,
    UNKNOWN,
    Source,
    find_files,
    holds,
)
from megatron_ultralong.program.errors import InputError
from tests.data.source_files import LINES, PROSE, TEXTS, counts, found, table, texts_of
from tests.models import write_tokenizer


def write(root: Path, *names: str, text: str = PROSE) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}{name}")


def test_litter_below_a_folder_is_left_out_and_told(tmp_path: Path) -> None:
    """What `hf download`, macOS, git, editors, Spark and people leave beside data."""
    write(tmp_path, "data/a.txt", "data/b.py", "Makefile", "readme.py")
    (tmp_path / "data/c.jsonl").write_text(LINES)
    hidden = [
        ".gitattributes", ".cache/huggingface/.gitignore", ".cache/huggingface/CACHEDIR.TAG",
        ".cache/huggingface/download/data/c.jsonl.metadata", ".cache/x.jsonl", "data/._c.jsonl",
        ".git/HEAD", "data/.ipynb_checkpoints/a.txt", ".DS_Store", ".c.jsonl.swp",
    ]  # fmt: skip
    programs = ["data/c.jsonl.lock", "_SUCCESS", "dataset_info.json", "data/a.txt~", "a.txt.bak",
                "__MACOSX/a.txt", "__pycache__/b.txt", "Thumbs.db", "x.crc", "y.jsonl.incomplete",
                "SHA256SUMS"]  # fmt: skip
    about = ["README.md", "LICENSE", "data/README", "LICENSE.txt", "CITATION.cff"]
    write(tmp_path, *hidden, *programs, *about, "notes.xyz", "unknown")
    files = found(tmp_path)
    names = [str(part.path.relative_to(tmp_path)) for part in files.files]
    assert names == ["Makefile", "data/a.txt", "data/b.py", "data/c.jsonl", "readme.py"]
    by_reason: dict[str, int] = {}
    for line in files.counts:
        by_reason[line.reason] = by_reason.get(line.reason, 0) + line.num_files
    assert by_reason == {
        "": 5, HIDDEN: len(hidden), "left there by a program": len(programs),
        "about the data, by its name": len(about), UNKNOWN: 2,
    }  # fmt: skip
    assert counts(files)[".gitattributes"] == (1, HIDDEN)
    # named, each is read
    for name in ("README.md", "notes.xyz", ".gitattributes", "data/a.txt~"):
        assert texts_of(tmp_path / name) == [PROSE + name]
    assert texts_of(tmp_path, suffixes=(".xyz",)) == [PROSE + "notes.xyz"]
    assert len(texts_of(tmp_path, suffixes=(".md",))) == 1
    assert texts_of(tmp_path / "*.md") == [PROSE + "README.md"]
    (tmp_path / ".cache/x.jsonl").write_text(LINES)
    assert texts_of(tmp_path / ".cache", suffixes=(".jsonl",)) == TEXTS  # hidden is what is below


def test_suffixes_that_are_not_wanted_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.py", "c.py")
    assert counts(found(tmp_path, ".py")) == {".py": (2, "text"), ".txt": (1, NOT_WANTED)}
    with pytest.raises(
        InputError, match=r"no file ending in \.rs .*\(of 3 files there: .*2 \.py not"
    ):
        found(tmp_path, ".rs")


def test_links_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path, "own/a.txt", "own/deep/b.txt", "other/c.txt", "other/deep/d.txt")
    own = tmp_path / "own"
    (own / "more").symlink_to("../other")
    (own / "again").symlink_to("../other")
    (own / "up").symlink_to("..")
    (own / "self").symlink_to(".")
    (own / "deep" / "loop").symlink_to("../deep")
    (own / "e.txt").symlink_to("a.txt")
    os.link(own / "a.txt", own / "f.txt")
    (tmp_path / "other" / "back").symlink_to("../own")
    expected = {PROSE + name for name in
                ("own/a.txt", "own/deep/b.txt", "other/c.txt", "other/deep/d.txt")}  # fmt: skip
    for pattern in (own, tmp_path / "own/**/*.txt", tmp_path / "own/**", tmp_path / "o*"):
        texts = texts_of(pattern)
        assert set(texts) == expected
        assert len(texts) == 4, pattern
    files = found(own)
    names = [str(part.path.relative_to(own)) for part in files.files]
    assert names[:2] == ["a.txt", "deep/b.txt"]  # not by links where there is a plain way
    repeated = sum(line.num_files for line in files.counts if line.reason == REPEATED)
    assert repeated >= 4  # e.txt, f.txt, self, deep/loop


class _WithoutNumber:
    """What is known of a file where the server gives all of them one number."""

    st_ino = 0

    def __init__(self, status: os.stat_result) -> None:
        self._status = status

    def __getattr__(self, name: str) -> object:
        return getattr(self._status, name)


def test_files_and_folders_of_one_number_are_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / f"folder-{number}/inner").mkdir(parents=True)
        for name in ("a.txt", "inner/b.txt"):
            (tmp_path / f"folder-{number}" / name).write_text("x" * (1 + number))
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *args, **kw: _WithoutNumber(stat(*args, **kw)))
    for pattern in ("", "/*", "/**", "/*/*.txt", "/**/*.txt"):
        found = find_files(Source("x", f"{tmp_path}{pattern}"), ReadOptions())
        names = sorted(str(part.path.relative_to(tmp_path)) for part in found.files)
        expected = [f"folder-{n}/{name}" for n in range(3) for name in ("a.txt", "inner/b.txt")]
        assert names == (expected if pattern != "/*/*.txt" else expected[::2]), pattern


def test_the_name_that_says_what_a_file_is_comes_first(tmp_path: Path) -> None:
    """As a hub's cache: the file under its hash, and a link by its name."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots" / "1").mkdir(parents=True)
    pq.write_table(table(), tmp_path / "blobs" / "0a1b")
    (tmp_path / "snapshots" / "1" / "train.parquet").symlink_to("../../blobs/0a1b")
    assert texts_of(tmp_path) == TEXTS


def test_links_to_nothing_and_pipes(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert counts(found(tmp_path))[".jsonl"] == (1, "a pipe, a socket or a device")
    for target in ("missing.jsonl", "b.jsonl"):
        (tmp_path / "b.jsonl").unlink(missing_ok=True)
        (tmp_path / "b.jsonl").symlink_to(target)
        with pytest.raises(InputError, match=r"b\.jsonl cannot be read \(.*: copy it again"):
            found(tmp_path)
        assert texts_of(tmp_path, skip_bad=True) == [PROSE + "a.txt"]


@pytest.mark.parametrize("suffix", ["", ".txt", ".jsonl", ".parquet"])
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_pipe_that_is_named_is_no_file(tmp_path: Path, suffix: str, skip_bad: bool) -> None:
    """``--source a=<(zcat a.gz)``: what was looked at is gone when it is read."""
    os.mkfifo(tmp_path / f"pipe{suffix}")
    with pytest.raises(InputError, match="is a pipe, a socket or a device, and files are read mo"):
        find_files(Source("s", str(tmp_path / f"pipe{suffix}")), ReadOptions(skip_bad=skip_bad))
    reading, writing = os.pipe()
    with (
        open(reading, "rb") as end,
        open(writing, "wb"),
        pytest.raises(InputError, match="is a pipe, a socket or a device, and files are read mo"),
    ):
        find_files(Source("s", f"/dev/fd/{end.fileno()}"), ReadOptions(skip_bad=skip_bad))


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.txt", "closed/b.txt")
    listing = os.scandir

    def closed(path: Path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", closed)  # root may list every folder
    with pytest.raises(InputError, match=r"cannot list .*closed \(Permission denied\): its files"):
        found(tmp_path)


def test_many_suffixes_are_counted_together(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", *(f"b.x{number}" for number in range(100)))
    files = found(tmp_path)
    assert len(files.counts) <= 62
    assert sum(line.num_files for line in files.counts) == 101
    assert files.counts[0].read_as == "text"


def test_rows_in_a_source_are_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `prepare` has written into a source is not a text of it: it is warned of."""
    texts, rows = tmp_path / "texts", tmp_path / "texts" / "rows"
    write_tokenizer(tmp_path / "tokenizer")
    write(texts, "a.txt", "more/b.txt", text=PROSE * 40)
    (texts / "more" / "manifest.json").write_text('{"text": "of something else"}')
    config = PrepareConfig(
        source=(f"a={texts}",),
        tokenizer=tmp_path / "tokenizer",
        output=rows,
        seq_length=64,
        valid_fraction=0.0,
        sampling=LengthSampling("none"),
    )
    first = prepare(config)
    told = f"warning: --output {rows} lies in the source a={texts}: "
    assert capsys.readouterr().err.count(told) == 1
    again = prepare(dataclasses.replace(config, output=tmp_path / "again"))
    assert "warning: --output" not in capsys.readouterr().err
    assert again.splits == first.splits
    of_rows = [line for line in found(texts).counts if line.reason == ROWS]
    assert sum(line.num_files for line in of_rows) == sum(p.is_file() for p in rows.rglob("*"))
    with pytest.raises(InputError, match=r"no file at .*rows.*of rows that `prepare` has written"):
        found(rows)
    (rows / "notes.txt").write_text(PROSE)
    assert texts_of(rows / "notes.txt") == [PROSE]  # that is asked for


@pytest.mark.parametrize(
    ("pattern", "output", "is_inside"),
    [
        ("texts", "texts/rows", True),
        ("texts", "texts/deep/rows", True),
        ("texts", "texts", True),
        ("texts", "texts2", False),
        ("texts/*", "texts/rows", True),
        ("texts/**/*.json", "texts/rows", True),
        ("texts/*.jsonl", "texts/rows", False),
        ("te*", "texts/rows", True),
        ("other/*", "texts/rows", False),
    ],
)
def test_an_output_in_a_source(tmp_path: Path, pattern: str, output: str, is_inside: bool) -> None:
    (tmp_path / "texts").mkdir()
    assert holds(Source("a", str(tmp_path / pattern)), tmp_path / output) is is_inside


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("allenai/tulu-3-sft-mixture", "`hf download allenai/tulu-3-sft-mixture --repo-type data"),
        ("teknium/OpenHermes-2.5", "--local-dir OpenHermes-2.5`, and give that folder; check"),
        ("https://a.b/c.jsonl.gz?download=true", "nothing is read over the network: download it"),
        ("hf://datasets/a/b", "nothing is read over the network: download it"),
        ("nowhere/a.jsonl", ""),
        ("nowhere/a.jsonl.gz", ""),
        ("nowhere/*", ""),
        ("nowhere", ""),
        ("./nowhere/a", ""),
        ("/nowhere/a", ""),
    ],
)
def test_what_stands_elsewhere_is_told_as_that(pattern: str, hint: str) -> None:
    with pytest.raises(InputError, match=r"no file at .* \(nothing is there\)") as caught:
        find_files(Source("x", pattern), ReadOptions())
    said = str(caught.value)
    assert hint in said
    assert said.endswith("; check the path, the quotes around a pattern, and --suffix")
    assert bool(hint) == ("download" in said)
