import dataclasses
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro
from tokenizers import Tokenizer

from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.pack.sampling import LengthSampling, split_of
from megatron_ultralong.data.prepare.documents import prepare
from megatron_ultralong.data.read.options import ReadOptions
from megatron_ultralong.data.rows.manifest import Manifest, load_manifest
from megatron_ultralong.data.rows.packed import PackedRows
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.documents import document_boundaries, document_id, document_split
from tests.data.digests import digests

DEMO = LengthSampling("ultralong", short_length=3500, long_length=6000, long_weight=2.5)


def stream(rows: PackedRows) -> list[int]:
    return np.concatenate(list(rows)).tolist()


def split_at(tokens: list[int], separator: list[int]) -> list[tuple[int, ...]]:
    documents, start, i = [], 0, 0
    while i <= len(tokens) - len(separator):
        if tokens[i : i + len(separator)] == separator:
            documents.append(tuple(tokens[start:i]))
            i = start = i + len(separator)
        else:
            i += 1
    return documents


def test_rows_hold_every_document_once_in_its_split(
    config: PrepareConfig, manifest: Manifest, reference: Tokenizer, library_files: list[Path]
) -> None:
    texts = {tuple(reference.encode(p.read_text()).ids): p.read_text() for p in library_files}
    found = {}
    for split, summary in manifest.splits.items():
        rows = PackedRows(config.output / split)
        assert (len(rows), rows.seq_length) == (summary.num_rows, 512)
        documents = split_at(stream(rows), manifest.separator_ids)
        found[split] = {texts[document] for document in documents}
        assert len(found[split]) == len(documents)
        for text in found[split]:
            assert document_split(document_id(text), 0.2, config.seed) == split
        # those that end in the incomplete last row are missing, and no others
        assert 0 <= summary.num_documents - len(documents) <= summary.num_dropped_tokens
    assert not found["train"] & found["valid"]
    assert sum(s.num_documents for s in manifest.splits.values()) == 60


def test_same_bytes_again_and_in_one_thread(
    config: PrepareConfig, manifest: Manifest, tmp_path: Path
) -> None:
    arguments = [f"--source={source}" for source in config.source]
    arguments += ["--suffix=.py", "--seq-length=512", "--valid-fraction=0.2"]
    arguments += [f"--tokenizer={config.tokenizer}", f"--output={tmp_path / 'rows'}"]
    code = "import tyro; from megatron_ultralong.data.prepare import documents; "
    code += "documents.prepare(tyro.cli(documents.PrepareConfig))"
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--length-sampling=none"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert digests(tmp_path / "rows") == digests(config.output)
    assert "Tokenizing" in done.stderr
    assert "ETA" in done.stderr
    assert f"train: {manifest.splits['train'].num_rows:,} rows x 512" in done.stdout


def test_rows_do_not_depend_on_how_the_documents_lie_on_disk(
    config: PrepareConfig, manifest: Manifest, library_files: list[Path], tmp_path: Path
) -> None:
    texts = [path.read_text() for path in library_files]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in reversed(texts))
    (tmp_path / "all.jsonl").write_text(lines)
    array = json.dumps([{"text": text} for text in texts], indent=1)
    (tmp_path / "array.json.gz").write_bytes(gzip.compress(array.encode()))
    for file in ("all.jsonl", "array.json.gz"):
        source, output = (f"all={tmp_path}/{file}",), tmp_path / f"rows of {file}"
        other = dataclasses.replace(config, source=source, output=output)
        prepare(other)
        for name in ("train.bin", "train.idx", "valid.bin", "valid.idx"):
            assert digests(other.output)[name] == digests(config.output)[name]


def test_sampling_by_length(config: PrepareConfig, tmp_path: Path) -> None:
    sampled = prepare(dataclasses.replace(config, output=tmp_path / "rows", sampling=DEMO))
    assert load_manifest(tmp_path / "rows") == sampled
    for source in ("lines", "files"):
        short, medium, long = (line for line in sampled.bins if line.source == source)
        assert short.weight == pytest.approx(0.1 * medium.weight)
        assert long.weight == pytest.approx(2.5 * medium.weight)
        assert short.num_documents_sampled < short.num_documents
        assert long.num_documents_sampled > long.num_documents
    rows = PackedRows(tmp_path / "rows" / "valid")
    valid = split_at(stream(rows), sampled.separator_ids)
    assert len(set(valid)) == len(valid)  # held-out documents are not repeated


@pytest.mark.parametrize("sampling", ["none", "fu", "ultralong"])
def test_the_table_has_the_shares_of_the_manifest(
    config: PrepareConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], sampling: str
) -> None:
    """Those of training, whatever is held out, in each of the three places."""
    plain = dataclasses.replace(DEMO, name=sampling)  # type: ignore[arg-type]
    own = dataclasses.replace(config, sampling=plain, valid_fraction=0.3, output=tmp_path / "rows")
    manifest = prepare(own)
    said = capsys.readouterr().out
    for share in manifest.shares:
        asked, there = f"{share.share_asked:.1%}", f"{share.share:.1%}"
        assert re.search(
            rf"{share.source} +all +\d+ +[\d.]+M +{asked} +\d+ +[\d.]+M +{there}", said
        )
        for lines in (manifest.bins, manifest.lengths):
            own_tokens = sum(x.num_tokens_sampled for x in lines if x.source == share.source)
            tokens = sum(x.num_tokens_sampled for x in lines)
            assert share.share == pytest.approx(own_tokens / tokens)
    packed = sum(line.num_documents_sampled for line in manifest.bins)
    assert packed == manifest.splits["train"].num_documents


def test_budget(config: PrepareConfig, manifest: Manifest, tmp_path: Path) -> None:
    sampled = prepare(dataclasses.replace(config, output=tmp_path / "rows", max_tokens=100_000))
    train, all_of_it = sampled.splits["train"], manifest.splits["train"]
    separators = len(sampled.separator_ids) * train.num_documents
    kept = train.num_tokens + train.num_dropped_tokens - separators
    assert kept == pytest.approx(100_000, rel=0.01)
    whole = all_of_it.num_tokens + all_of_it.num_dropped_tokens
    whole -= len(sampled.separator_ids) * all_of_it.num_documents
    for line in sampled.bins:
        assert line.weight == pytest.approx(100_000 / whole) or not line.num_documents


HELD_OUT = ("valid.bin", "valid.idx", "test.bin", "test.idx")


@pytest.mark.parametrize("sampling", ["none", "fu", "ultralong"])
def test_what_is_held_out_does_not_depend_on_the_budget(
    config: PrepareConfig, tmp_path: Path, sampling: str
) -> None:
    """Held-out losses of two runs are of the same rows, whatever either trained on."""
    plain = dataclasses.replace(DEMO, name=sampling)  # type: ignore[arg-type]
    found = []
    for number, max_tokens in enumerate((None, 100_000, 20_000)):
        output = tmp_path / str(number)
        own = dataclasses.replace(config, sampling=plain, test_fraction=0.1, output=output)
        prepare(dataclasses.replace(own, max_tokens=max_tokens))
        found.append(digests(output))
    assert len({each["train.bin"] for each in found}) > 2
    for name in HELD_OUT:
        assert len({each[name] for each in found}) == 1, name


@pytest.mark.parametrize(
    ("separator", "expected"), [("none", []), ("eos", [1001]), ("<|begin_of_text|>", [1000])]
)
def test_separator_is_one_option(
    config: PrepareConfig, tmp_path: Path, separator: str, expected: list[int]
) -> None:
    result = prepare(
        dataclasses.replace(
            config, output=tmp_path / "rows", separator=separator, valid_fraction=0.0
        )
    )
    assert result.separator_ids == expected
    assert set(result.splits) == {"train"}
    tokens = stream(PackedRows(tmp_path / "rows" / "train"))
    assert set(tokens) & {1000, 1001} == set(expected)


def test_documents_that_hold_the_separator_and_copies_are_counted(
    config: PrepareConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("a", "x <s> y" * 50), ("b", "nothing " * 50), ("c", "nothing " * 50)):
        (tmp_path / f"{name}.txt").write_text(text)
    result = prepare(
        dataclasses.replace(
            config,
            source=(f"a={tmp_path}/*.txt",),
            output=tmp_path / "rows",
            separator=" <s>",
            seq_length=16,
            valid_fraction=0.0,
            reading=ReadOptions(),
        )
    )
    assert result.num_documents_with_separator == 1
    said = capsys.readouterr().out
    assert "1 document has the separator ' <s>' (ids [" in said
    assert "documents left out: 1 copy of an earlier one\n" in said


def refuse(config: PrepareConfig, message: str, **changes: object) -> None:
    """The run ends with the message and leaves nothing beside the output."""
    before = set(config.output.parent.rglob("*"))
    with pytest.raises(InputError, match=message):
        prepare(dataclasses.replace(config, **changes))  # type: ignore[arg-type]
    assert set(config.output.parent.rglob("*")) == before


def test_bad_input_leaves_nothing_behind(
    config: PrepareConfig, corpus: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, output=tmp_path / "rows")
    picture = r"source 'files': .*picture\.png is a PNG image by its first bytes: .*--skip-bad"
    refuse(config, picture, reading=ReadOptions())
    refuse(config, "'none' must be NAME=PATH", source=("none",))
    refuse(config, "no --source", source=())
    refuse(config, r"source 'x': no file", source=(f"x={tmp_path}/missing",))
    refuse(config, r"has no tokenizer\.json or tokenizer\.model", tokenizer=tmp_path)
    refuse(config, "seq_length must be at least 2, not 1", seq_length=1)
    refuse(config, "valid_fraction must be at least 0 and below 1, not 1.0", valid_fraction=1.0)
    refuse(config, r"test_fraction \(0.9\) must be .* valid_fraction \(0.2\)", test_fraction=0.9)
    refuse(config, "workers must be at least 1, not 0", workers=0)
    refuse(config, r"split 'test' has \d+ .*raise --test-fraction \(0.001\)", test_fraction=0.001)
    refuse(config, r"max_tokens \(5\) must be at least seq_length \(512\)", max_tokens=5)
    refuse(
        config,
        r"split 'train' has \d+ tokens after sampling \(\d+ before\), under one",
        seq_length=10**8,
    )
    few = r"split 'valid' has \d+ tokens .*raise --valid-fraction \(0.001\), set it to 0"
    refuse(config, few, valid_fraction=0.001)
    # the cause first: what sampling took, or else that there never was a row
    short = LengthSampling("fu", short_length=10**6, short_weight=0.0001)
    took = r"train' has \d+ tokens after .* \(\d+ before\), .*: sample less strictly .*\(now fu"
    refuse(config, took, sampling=short, seq_length=16384)
    budget = r"train' has \d+ tokens .*: raise --max-tokens \(512\), lower"
    refuse(config, budget, max_tokens=512, sampling=LengthSampling("none"))
    never = r"\(\d+ before\), under one row of seq_length \(100000000\): lower --valid-fraction"
    refuse(config, never, seq_length=10**8, max_tokens=10**8)
    refuse(config, r"\(100000000\): add documents, or", seq_length=10**8, valid_fraction=0)
    test = r"\(100000000\): lower --test-fraction \(0\.2\), add documents, or"
    refuse(config, test, seq_length=10**8, valid_fraction=0, test_fraction=0.2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.py").touch()
    refuse(
        config,
        r"source 'e' has no text: .*/empty \(1 file, 1 empty",
        source=(f"e={tmp_path}/empty",),
    )
    deep = tmp_path / "new" / "deep" / "rows"
    refuse(config, r"source 'x': no file", source=(f"x={tmp_path}/missing",), output=deep)
    assert not deep.parent.parent.exists()
    file = config.tokenizer / "tokenizer.json"
    refuse(config, "cannot be written: .*Not a directory.*, or name another", output=file / "rows")


def test_what_nobody_expects_leaves_nothing_behind_either(
    config: PrepareConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    for name in ("plan_shards", "merge_shards", "select_documents", "copy_tokenizer"):
        with monkeypatch.context() as patch:
            patch.setattr(f"megatron_ultralong.data.prepare.documents.{name}", fail)
            with pytest.raises(ZeroDivisionError):
                prepare(dataclasses.replace(config, output=tmp_path / "new" / "rows"))
        assert not list(tmp_path.iterdir())


def test_the_lengths_of_sampling_are_said_before_tokenising(
    config: PrepareConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = prepare(
        dataclasses.replace(config, output=tmp_path / "rows", sampling=LengthSampling())
    )
    said = capsys.readouterr().err
    line = (
        "sampling: documents of <32 tokens are short, of >=64 long in rows of 512 (--short-length"
    )
    assert said.index(line) < said.index("Tokenizing")
    assert result.length_sampling["short_length"] == 32
    assert {line.length_bin for line in result.bins} == {"<32", "32-63", ">=64"}
    assert "would do" not in said
    prepare(dataclasses.replace(config, output=tmp_path / "odd", seq_length=511))
    assert "no CP from 2 to 64 divides them" in capsys.readouterr().err


def test_rows_that_lack_a_letter_are_told(
    config: PrepareConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--seq-length 512`` for 512K, where the tokenizer's folder is a model's."""
    folder = tmp_path / "model"
    shutil.copytree(config.tokenizer, folder)
    for contents, is_told in (
        ('{"max_position_embeddings": 131072}', True),
        ('{"max_position_embeddings": 512}', False),
        ("{", False),
    ):
        (folder / "config.json").write_text(contents)
        prepare(
            dataclasses.replace(config, tokenizer=folder, output=tmp_path / f"rows{len(contents)}")
        )
        told = "warning: rows of 512 tokens, where the model has 131,072 positions; 512K is 524,288"
        assert (told in capsys.readouterr().err) == is_told


def test_an_output_that_is_not_empty_is_refused(config: PrepareConfig, tmp_path: Path) -> None:
    output = tmp_path / "rows"
    output.mkdir()
    (output / "notes").write_text("mine")
    refuse(
        config,
        r"--output .*rows holds 1 entries, .*: existing files are not overwritten",
        output=output,
    )
    refuse(config, "notes is a file", output=output / "notes")
    assert (output / "notes").read_text() == "mine"
    (output / "notes").unlink()
    assert prepare(dataclasses.replace(config, output=output)) == load_manifest(output)


def test_boundaries_beside_the_rows_are_those_of_the_documents(
    config: PrepareConfig, manifest: Manifest
) -> None:
    # no file of the corpus holds "<s>" as ids: a search finds the same
    assert manifest.num_documents_with_separator == 0
    for split in ("train", "valid"):
        rows = PackedRows(config.output / split)
        for row in range(len(rows)):
            found = document_boundaries(rows[row], manifest.separator_ids)
            np.testing.assert_array_equal(rows.boundaries(row), found)


@pytest.mark.parametrize("packing", ["row-start", "whole"])
def test_packing_is_one_option(
    config: PrepareConfig, manifest: Manifest, tmp_path: Path, packing: str
) -> None:
    changed = dataclasses.replace(
        config, output=tmp_path / "rows", packing=packing, seq_length=8192
    )
    result = prepare(changed)
    tokens = {}
    for output, made in ((tmp_path / "rows", result), (config.output, manifest)):
        rows = PackedRows(output / "train")
        real = [rows[i][: rows.num_real_tokens(i)] for i in range(len(rows))]
        tokens[made.packing] = np.bincount(np.concatenate(real), minlength=1002)
    train = result.splits["train"]
    dropped = train.num_dropped_tokens + manifest.splits["train"].num_dropped_tokens
    # the same tokens, except for the ends; of a document cut at its separator that part is left out
    cut = len(manifest.separator_ids) * train.num_documents
    assert abs(tokens[packing] - tokens["stream"]).sum() <= dropped + cut
    rows = PackedRows(tmp_path / "rows" / "train")
    if packing == "whole":
        padding = sum(8192 - rows.num_real_tokens(row) for row in range(len(rows)))
        assert 0 < padding == train.num_padding_tokens
        assert train.num_dropped_tokens == 0
        starts = sum(rows.boundaries(row).size - 1 for row in range(len(rows)))
        assert starts >= train.num_documents
    else:
        assert train.num_padding_tokens == 0


def test_three_splits_share_no_document(
    config: PrepareConfig, manifest: Manifest, library_files: list[Path], tmp_path: Path
) -> None:
    result = prepare(dataclasses.replace(config, output=tmp_path / "rows", test_fraction=0.3))
    assert set(result.splits) == {"train", "valid", "test"}
    ids = [document_id(path.read_text()) for path in library_files]
    for split, summary in result.splits.items():
        own = [i for i in ids if split_of(i, 0.2, 0.3, config.seed) == split]
        assert summary.num_documents == len(own) > 0
    # a test split takes nothing from the valid one
    assert digests(tmp_path / "rows")["valid.bin"] == digests(config.output)["valid.bin"]


FLAGS = """
    --source --tokenizer --output --seq-length --separator --separator-in-text
    --valid-fraction --test-fraction --packing --seed --max-tokens --workers --tokenizer-engine
    --inspect --no-inspect
    --length-sampling --short-length --long-length --short-weight --long-weight
    --text-key --source-key --suffix --file-format --skip-bad --no-skip-bad
    --max-document-bytes
"""


def test_flags_are_pinned(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        tyro.cli(PrepareConfig, args=["--help"])
    line_start = r"^[^\w-]*(?:-h, )?(--[a-z][a-z-]+)(?:, (--[a-z-]+))?"
    found = re.findall(line_start, capsys.readouterr().out, re.M)
    assert {flag for pair in found for flag in pair if flag} == {"--help", *FLAGS.split()}
