"""A file whose first record cannot be read is told before anything is tokenised."""

import dataclasses
import functools
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ultralong.data.options import PrepareChatConfig, PrepareConfig
from megatron_ultralong.data.prepare import documents
from megatron_ultralong.data.prepare.chats import prepare_chat
from megatron_ultralong.data.prepare.documents import prepare
from megatron_ultralong.data.read.options import ChatReadOptions, ReadOptions
from megatron_ultralong.data.read.reading import FIRST_RECORD_BYTES
from megatron_ultralong.data.rows.manifest import load_manifest
from megatron_ultralong.data.store import shards
from megatron_ultralong.program.errors import InputError
from tests.data.chats import TEMPLATE, write_chat_tokenizer

Records = list[dict[str, Any]]


def _lines(records: Records) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _parquet(records: Records) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return bytes(sink.getvalue())


WRITERS: dict[str, Callable[[Records], bytes]] = {
    "c.jsonl": _lines,
    "c.json": _lines,
    "c.jsonl.gz": lambda records: gzip.compress(_lines(records)),
    "array.json": lambda records: json.dumps(records).encode(),
    "array.json.gz": lambda records: gzip.compress(json.dumps(records).encode()),
    "c.parquet": _parquet,
}
WRONG: Records = [{"content": f"text {number}", "id": number} for number in range(3)]


@pytest.mark.parametrize("name", WRITERS)
def test_documents(
    config: PrepareConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).write_bytes(WRITERS[name](WRONG))
    config = dataclasses.replace(
        config, source=(config.source[0], f"c={tmp_path / name}"), output=tmp_path / "rows"
    )
    message = (
        rf"source 'c': .*{name}.*: key 'text' has no value \(keys here: content, id\); "
        "--text-key c=content names another"
    )
    with pytest.raises(InputError, match=message):
        prepare(dataclasses.replace(config, reading=ReadOptions()))
    assert "Tokenizing" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    write_chat_tokenizer(folder, TEMPLATE)
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    (tmp_path / "a.jsonl").write_bytes(_lines([{"messages": turns}] * 9))
    (tmp_path / name).write_bytes(WRITERS[name]([{"turns": turns}] * 3))
    config = PrepareChatConfig(
        source=(f"a={tmp_path / 'a.jsonl'}", f"c={tmp_path / name}"),
        tokenizer=folder,
        output=tmp_path / "rows",
    )
    with pytest.raises(InputError, match=rf"source 'c': .*{name}.*no format has these keys"):
        prepare_chat(config)
    assert "Tokenizing" not in capsys.readouterr().err


def test_what_is_fine_or_skipped_is_not_told(
    config: PrepareConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No record, a first one that is long, bad ones that are skipped."""
    pq.write_table(pa.table({"other": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    long = "long text. " * (FIRST_RECORD_BYTES // 11 + 1)
    (tmp_path / "long.jsonl").write_bytes(_lines([{"text": long}, {"text": "short"}]))
    source = (config.source[0], f"more={tmp_path}/*.*")
    config = dataclasses.replace(config, source=source, output=tmp_path / "rows")
    manifest = prepare(dataclasses.replace(config, reading=ReadOptions()))
    assert manifest.inputs[1].num_documents == 2
    (tmp_path / "wrong.jsonl").write_bytes(_lines(WRONG))
    config = dataclasses.replace(config, output=tmp_path / "skipped")
    manifest = prepare(dataclasses.replace(config, reading=ReadOptions(skip_bad=True)))
    assert (manifest.inputs[1].num_documents, manifest.inputs[1].num_bad) == (2, 3)
    assert "Tokenizing" in capsys.readouterr().err


@pytest.mark.parametrize("shard_bytes", [shards.SHARD_BYTES, 200])
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_gave_nothing_is_named(
    config: PrepareConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    shard_bytes: int,
) -> None:
    """Of any form, whole and in shards, beside files with more bad records than are shown."""
    plan = functools.partial(shards.plan_shards, shard_bytes=shard_bytes)
    monkeypatch.setattr(documents, "plan_shards", plan)
    path = tmp_path / f"more-{name}"
    path.write_bytes(WRITERS[name]([{"content": f"text {n}" * 9} for n in range(30)]))
    mixed = [{"text": f"good text {n}"} for n in range(9)] + [{"text": n} for n in range(9)]
    (tmp_path / "more-a.jsonl").write_bytes(_lines(mixed))
    (tmp_path / "more-b.jsonl").write_bytes(_lines([{"text": ""}, {"text": 1}]))
    source = (config.source[0], f"more={tmp_path}/more-*")
    config = dataclasses.replace(config, source=source, reading=ReadOptions(skip_bad=True))
    config = dataclasses.replace(config, output=tmp_path / "rows")
    (found,) = prepare(config).inputs[1:]
    assert found.num_bad == 40
    assert list(found.refused_files) == [str(path)]
    said = "".join(capsys.readouterr().out.split("\n"))
    begin = re.escape(f"more: nothing of this file was kept: {path}")
    assert re.search(rf"{begin}[^ ]*: key 'text' has no value", said)
    assert load_manifest(config.output).inputs[1] == found


def test_a_file_of_conversations_that_gave_nothing_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    write_chat_tokenizer(folder, TEMPLATE)
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    (tmp_path / "a.jsonl").write_bytes(_lines([{"messages": turns}] + [{"messages": 3}] * 9))
    (tmp_path / "b.jsonl").write_bytes(_lines([{"turns": turns}] * 3))
    config = PrepareChatConfig(
        source=(f"a={tmp_path}/*.jsonl",),
        tokenizer=folder,
        output=tmp_path / "rows",
        valid_fraction=0.0,
        reading=ChatReadOptions(skip_bad=True),
    )
    (found,) = prepare_chat(config).sources
    assert list(found.refused_files) == [str(tmp_path / "b.jsonl")]
    said = "".join(capsys.readouterr().out.split("\n"))
    assert f"a: nothing of this file was kept: {tmp_path / 'b.jsonl'}:1: unknown format: " in said
