import hashlib
import json
import os
from pathlib import Path

import pytest

from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.rows.manifest import Manifest, load_manifest
from megatron_ultralong.program.errors import InputError


def test_manifest_adds_up(config: PrepareConfig, manifest: Manifest) -> None:
    assert load_manifest(config.output) == manifest
    assert set(os.listdir(config.output)) == {
        "manifest.json",
        "tokenizer",
        *(
            f"{split}{kind}.{suffix}"
            for split in ("train", "valid")
            for kind in ("", ".boundaries")
            for suffix in ("bin", "idx", "crc32")
        ),
    }
    lines, files = manifest.inputs
    assert (lines.num_documents, lines.num_duplicates, lines.num_empty) == (31, 1, 0)
    assert (files.num_documents, files.num_duplicates, files.num_empty) == (30, 0, 1)
    for summary, count in ((lines, 1), (files, 31)):
        paths = sorted(Path(summary.path).glob("*.py")) or [Path(summary.path)]
        assert len(paths) == count
        for path, file in zip(paths, summary.files, strict=True):
            data = path.read_bytes()
            assert (file.path, file.num_bytes) == (str(path), len(data))
            assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert len({lines.ids_sha256, files.ids_sha256}) == 2
    tokenizer = (config.output / "tokenizer" / "tokenizer.json").read_bytes()
    assert manifest.tokenizer_sha256 == hashlib.sha256(tokenizer).hexdigest()
    assert sum(line.num_documents for line in manifest.bins) == 60
    train = manifest.splits["train"]  # everything is kept once, there or held out
    assert sum(line.num_documents_sampled for line in manifest.bins) == train.num_documents
    for line in manifest.bins:
        assert line.num_documents_sampled <= line.num_documents
        assert line.num_tokens_sampled <= line.num_tokens
    train_tokens = train.num_tokens + train.num_dropped_tokens
    sampled = sum(line.num_tokens_sampled for line in manifest.bins)
    assert train_tokens == sampled + train.num_documents * len(manifest.separator_ids)
    packed = sum(s.num_tokens + s.num_dropped_tokens for s in manifest.splits.values())
    separators = 60 * len(manifest.separator_ids)
    assert packed == sum(line.num_tokens for line in manifest.bins) + separators
    assert set(manifest.versions) == {
        "megatron_ultralong",
        "python",
        "numpy",
        "pyarrow",
        "tokenizers",
        "gigatoken",
    }
    for columns in (manifest.bins, manifest.lengths):
        for source in ("lines", "files"):
            assert sum(c.num_documents for c in columns if c.source == source) == 30
    assert sum(c.num_tokens for c in manifest.lengths) == sum(b.num_tokens for b in manifest.bins)


def test_broken_manifests(config: PrepareConfig, manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*manifest\.json \(No such file"):
        load_manifest(tmp_path)
    good = json.loads((config.output / "manifest.json").read_text())
    found = good["inputs"][0]
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "has format_version None, where this program reads 4"),
        (json.dumps({**good, "seq_length": "64"}), r"field seq_length is '64': .* valid integer"),
        (json.dumps({**good, "seq_length": True}), r"field seq_length is True: .* valid integer"),
        (json.dumps({**good, "separator_ids": [1, None]}), r"field separator_ids\.1 is None: "),
        (json.dumps({**good, "splits": {"train": 3}}), r"field splits\.train is 3: .* an object"),
        (
            json.dumps({**good, "inputs": [{**found, "x": 1}]}),
            r"field inputs\.0\.x is 1: Unexpected",
        ),
        (
            json.dumps({**good, "inputs": [{**found, "counts": [{**found["counts"][0], "z": 1}]}]}),
            r"field inputs\.0\.counts\.0\.z is 1: Unexpected",
        ),
        (json.dumps({**good, "format_version": 9}), "has format_version 9"),
        (json.dumps({k: v for k, v in good.items() if k != "seed"}), "lacks a field .*seed"),
        (json.dumps({k: v for k, v in good.items() if k != "bins"}), "lacks a field .*bins"),
        (json.dumps({**good, "colour": 1}), "unknown one .*colour"),
    ):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(InputError, match=message):
            load_manifest(tmp_path)
