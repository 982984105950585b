"""Shares of the sources in what was packed, and what is said where they are missed."""

import dataclasses
import re
from pathlib import Path

import pytest

from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.pack.sampling import LengthSampling, split_of
from megatron_ultralong.data.prepare.documents import prepare
from megatron_ultralong.data.rows.manifest import Manifest, SourceShare
from megatron_ultralong.sequence.documents import document_id

SAMPLING = LengthSampling("ultralong", short_length=3500, long_length=6000, long_weight=2.5)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory, library_files: list[Path]) -> Path:
    """A document as long as a quarter of the others together."""
    file = tmp_path_factory.mktemp("book") / "book.py"
    file.write_text("\n".join(path.read_text() for path in library_files[:15]))
    return file


@pytest.fixture
def with_book(config: PrepareConfig, book: Path, tmp_path: Path) -> PrepareConfig:
    return dataclasses.replace(
        config,
        source=(*config.source, f"book={book}"),
        output=tmp_path / "rows",
        valid_fraction=0.0,
        sampling=SAMPLING,
    )


def shares_of(manifest: Manifest) -> dict[str, SourceShare]:
    return {share.source: share for share in manifest.shares}


def test_a_source_of_one_document_is_warned_of_and_the_way_out_works(
    with_book: PrepareConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = shares_of(prepare(with_book))
    book = shares["book"]
    assert f"warning: {book.warning}\n" in capsys.readouterr().err
    found = re.fullmatch(
        r"source 'book' has (\S+)% of the training tokens, where (\S+)% were asked for: its "
        r"documents come no nearer, each taken whole \(number: 1; the longest has [\d,]+ tokens "
        r"and weight (\S+)\); cut long ones, add others, or give --max-tokens (\d+): "
        r"that weight is (\d) then",
        book.warning,
    )
    assert found is not None, book.warning
    assert float(found[1]) == pytest.approx(100 * book.share, abs=0.005)
    assert float(found[2]) == pytest.approx(100 * book.share_asked, abs=0.005)
    assert abs(book.share / book.share_asked - 1) > 0.01
    # all others meet theirs among each other
    lines, files = shares["lines"], shares["files"]
    assert lines.warning == files.warning == ""
    assert lines.share / files.share == pytest.approx(
        lines.share_asked / files.share_asked, rel=0.02
    )
    way_out = dataclasses.replace(with_book, output=tmp_path / "b", max_tokens=int(found[4]))
    for share in prepare(way_out).shares:
        assert share.warning == ""
        assert share.share == pytest.approx(share.share_asked, rel=0.01)
    assert "warning" not in capsys.readouterr().err


def test_a_source_that_is_held_out_is_warned_of(with_book: PrepareConfig, book: Path) -> None:
    identity = document_id(book.read_text())
    seed = next(seed for seed in range(99) if split_of(identity, 0.2, 0, seed) == "valid")
    share = shares_of(prepare(dataclasses.replace(with_book, valid_fraction=0.2, seed=seed)))[
        "book"
    ]
    assert share.share == 0
    assert re.search(
        rf"has 0\.00% .*: ([\d,]+) of its \1 tokens are held out; lower --valid-fraction \(0\.2\) "
        rf"and --test-fraction \(0\.0\), or take another --seed \({seed}\)",
        share.warning,
    )


def test_a_source_of_copies_alone_is_warned_of(
    config: PrepareConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was in no table, and nothing said that it had no tokens."""
    again = config.source[0].partition("=")[2]
    twice = dataclasses.replace(
        config, source=(*config.source, f"again={again}"), output=tmp_path / "rows"
    )
    share = shares_of(prepare(twice))["again"]
    assert (share.share_asked, share.share) == (0, 0)
    assert re.fullmatch(
        r"source 'again' has none of the training tokens: all its documents \(number: 31\) are "
        r"equal to earlier ones, of sources before it or its own; name it before them, or leave it "
        r"out",
        share.warning,
    )
    assert f"warning: {share.warning}\n" in capsys.readouterr().err


def test_copies_left_out_of_a_row_are_warned_of(with_book: PrepareConfig) -> None:
    many = dataclasses.replace(SAMPLING, long_weight=9.0)  # a copy every 460,000 tokens
    manifest = prepare(dataclasses.replace(with_book, sampling=many, seq_length=500_000))
    dropped = [s.warning for s in manifest.shares if "copies were left out" in s.warning]
    assert dropped
    assert all("shorten --seq-length (500000)" in warning for warning in dropped)


def test_every_document_once_has_no_warning(manifest: Manifest) -> None:
    assert [share.warning for share in manifest.shares] == ["", ""]
    assert sum(share.share for share in manifest.shares) == pytest.approx(1)
