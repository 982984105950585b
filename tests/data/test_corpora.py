"""Folders as people have them: every document is found once, or what is missing is said."""

from __future__ import annotations

import collections
import gzip
import itertools
import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from megatron_ultralong.cli import main
from megatron_ultralong.data.read.sources import REFUSED
from megatron_ultralong.data.rows.manifest import Manifest, load_manifest
from megatron_ultralong.data.rows.packed import PackedRows
from megatron_ultralong.data.tokenize.tokenising import HuggingFaceTokenizer
from megatron_ultralong.program.errors import counted, escaped
from tests.data.corpora import Corpus, make

SAMPLE = range(50)
OTHERS = (range(50, 200), range(200, 350), range(350, 500))
SEQ_LENGTH = 4096
TEXTS = [f"Document {number}: " + "some words of it. " * 3 for number in range(40)]
LINES = ["".join(json.dumps({"text": t}) + "\n" for t in half) for half in (TEXTS[:20], TEXTS[20:])]


def prepare(tokenizer: Path, source: Path | str, output: Path, *flags: str) -> int:
    """The exit status of the command."""
    try:
        main([
            "prepare", "--source", f"s={source}", "--tokenizer", str(tokenizer),
            "--output", str(output), "--seq-length", str(SEQ_LENGTH), "--packing", "whole",
            "--length-sampling", "none", "--valid-fraction", "0", *flags,
        ])  # fmt: skip
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def documents(output: Path, manifest: Manifest, tokenizer: HuggingFaceTokenizer) -> list[str]:
    """The texts in the rows, in their order."""
    rows, width = PackedRows(output / "train"), len(manifest.separator_ids)
    found = []
    for number in range(len(rows)):
        row, edges = rows[number], rows.boundaries(number).tolist()
        for start, stop in itertools.pairwise(edges):
            if start < rows.num_real_tokens(number):
                assert row[stop - width : stop].tolist() == manifest.separator_ids
                found.append(tokenizer.decode(row[start : stop - width].tolist()))
    return found


def check(corpus: Corpus, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """One run: all documents and no others, or a message; nothing is left that is not whole."""
    output = corpus.root.parent / "rows"
    status = prepare(tokenizer, corpus.source, output, *corpus.flags)
    said = capsys.readouterr()
    told = "\n".join([*corpus.what, *corpus.flags, said.err, said.out])
    assert not any("\x1b" in text for text in said), told
    assert not (corpus.root.parent / ".rows.partial").exists(), told
    wanted = {text for text in corpus.wanted if text.strip()}
    if status:
        assert status == 2, told
        assert not output.exists(), told
        assert "Traceback" not in said.err, told
        assert said.err.count("error: ") == 1, told
        line = said.err.partition("error: ")[2].replace("\n  ", "\n")  # of a name with a newline
        names = [name for bad in corpus.bad for name in names_of(bad, corpus)]
        assert any(escaped(name) in line for name in names) or not wanted, told
        return status
    assert not corpus.bad or "--skip-bad" in corpus.flags, told
    manifest = load_manifest(output)
    found = documents(output, manifest, HuggingFaceTokenizer(tokenizer))
    assert len(found) == len(set(found)), told
    assert wanted <= set(found), (wanted - set(found), told)
    assert set(found) <= wanted | set(corpus.possible), (set(found) - wanted, told)
    (summary,) = manifest.inputs
    lost = {text for text in corpus.possible if text.strip()} - set(found)
    assert summary.num_bad >= len(corpus.bad), told
    assert summary.num_bad or not lost, (lost, told)
    if len(corpus.bad) <= 2 and summary.num_bad <= 5:
        told_bad = "".join([*summary.bad, *summary.refused_files.values()])
        for bad in corpus.bad:
            shown = [name for name in names_of(bad, corpus) if written(name) in told_bad]
            assert shown, (bad, told)
            assert escaped(shown[0]) in said.out, told
    read = sum(n.num_files for n in summary.counts if n.read_as or n.reason == REFUSED)
    assert read == corpus.num_read, told
    if not corpus.source.endswith("*"):
        left_out = sum(n.num_files for n in summary.counts if n.reason not in ("", REFUSED))
        assert left_out == corpus.num_left_out, told
    ways: collections.Counter[str] = collections.Counter()
    for line in summary.counts:
        how = f"left out, {line.reason}" if line.reason else f"read as {line.read_as}"
        ways[how] += line.num_files
    for how, number in ways.items():
        assert f"s: {counted(number, 'file')} {how}: " in said.out, told
    return status


def written(name: str) -> str:
    """A name as a manifest has it."""
    return name.encode(errors="backslashreplace").decode()


def names_of(path: Path, corpus: Corpus) -> list[str]:
    """All names of a file below the corpus."""
    paths = [Path(folder, name) for folder, _, names in os.walk(corpus.root) for name in names]
    return [str(other) for other in paths if other.exists() and other.samefile(path)]


def check_seeds(
    seeds: range, tokenizer: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = {0: 0, 2: 0}
    for seed in seeds:
        corpus = make(folder / "it", seed)
        corpus.what.insert(0, f"seed {seed}")
        ended[check(corpus, tokenizer, capsys)] += 1
        shutil.rmtree(folder / "it")
    logging.info("%d corpora: %s", len(seeds), ended)
    assert ended[0] > len(seeds) / 2
    assert ended[2] > len(seeds) / 10


def test_random_corpora(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_seeds(SAMPLE, tokenizer_folder, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", OTHERS, ids=str)
def test_the_other_random_corpora_of_500(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], seeds: range
) -> None:
    check_seeds(seeds, tokenizer_folder, tmp_path, capsys)


def test_a_hub_download(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {
        "data/train.jsonl": "".join(LINES),
        "README.md": "---\nlicense: mit\n---\n# A data set\n",
        ".gitattributes": "*.parquet filter=lfs\n",
        ".cache/huggingface/.gitignore": "*\n",
        ".cache/huggingface/CACHEDIR.TAG": "Signature: 8a477f597d28d172789f06886806bc55\n",
        ".cache/huggingface/download/data/train.jsonl.lock": "",
        ".cache/huggingface/download/data/train.jsonl.metadata": "0a1b\n2c3d\n17.0\n",
    }.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(text)
    read_all(tmp_path, tokenizer_folder)
    said = capsys.readouterr().out
    assert "s: 1 file read as jsonl: 1 .jsonl\n" in said
    assert "s: 5 files left out, hidden: a name on its path begins with a dot: 1 .TAG, 1 ." in said
    assert "s: 1 file left out, about the data, by its name: 1 .md\n" in said
    counts = json.loads((tmp_path / "rows" / "manifest.json").read_text())["inputs"][0]["counts"]
    assert sum(line["num_files"] for line in counts) == 7


def test_many_suffixes_are_told_in_a_line_each_way(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result is not lost behind a line for each suffix; the manifest has them all."""
    (tmp_path / "in").mkdir()
    for number in range(40):
        (tmp_path / "in" / f"a.q{number}").write_bytes(b"\x01\x02words")
        (tmp_path / "in" / f"b{number}.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "in" / "a.jsonl").write_text("".join(LINES))
    assert prepare(tokenizer_folder, tmp_path / "in", tmp_path / "rows", "--skip-bad") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("s: ")]
    assert len(lines) <= 3 + 5, lines
    assert lines[0] == "s: 1 file read as jsonl: 1 .jsonl"
    assert any(line.startswith("s: 40 files left out") and " 37 others" in line for line in lines)
    counts = json.loads((tmp_path / "rows" / "manifest.json").read_text())["inputs"][0]["counts"]
    assert sum(line["num_files"] for line in counts) == 81


def test_json_lines_of_c4(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, lines in enumerate(LINES):
        name = f"c4-train.{number:05}-of-00002.json.gz"
        (tmp_path / "in" / name).write_bytes(gzip.compress(lines.encode()))
    read_all(tmp_path, tokenizer_folder)


def test_a_link_to_a_folder(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(LINES[0])
    (tmp_path / "target" / "b.jsonl").write_text(LINES[1])
    (tmp_path / "in" / "more").symlink_to("../target")
    (tmp_path / "target" / "back").symlink_to("../in")
    read_all(tmp_path, tokenizer_folder)


def test_an_integer_of_thousands_of_digits(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    long = json.dumps({"text": "one more"}).replace("}", ', "n": ' + "7" * 9000 + "}\n")
    (tmp_path / "in" / "a.jsonl").write_text("".join(LINES) + long)
    read_all(tmp_path, tokenizer_folder, "one more")


def test_a_long_window_of_zstd(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2^31 bytes: refused for what it is, not for being cut short, and nothing is left behind."""
    text = "".join(LINES).encode()
    head = bytes.fromhex("28b52ffd") + bytes([0x00, 21 << 3])
    block = ((len(text) << 3) | 1).to_bytes(3, "little")
    (tmp_path / "a.jsonl.zst").write_bytes(head + block + text)
    source, output = tmp_path / "a.jsonl.zst", tmp_path / "new" / "deep" / "rows"
    assert prepare(tokenizer_folder, source, output) == 2
    said = capsys.readouterr().err
    assert "its zstd window is above 128 MiB, the largest that is read; decompress it" in said
    assert "cut short" not in said
    assert os.listdir(tmp_path) == ["a.jsonl.zst"]


def read_all(folder: Path, tokenizer: Path, *more: str) -> None:
    """The 40 documents and some more, each once."""
    assert prepare(tokenizer, folder / "in", folder / "rows") == 0
    manifest = load_manifest(folder / "rows")
    found = documents(folder / "rows", manifest, HuggingFaceTokenizer(tokenizer))
    assert sorted(found) == sorted([*TEXTS, *more])
