"""A key of the text for all sources, or for each."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.prepare.documents import prepare
from megatron_ultralong.data.read.options import ReadOptions
from megatron_ultralong.data.read.sources import Source, parse_sources, with_text_keys
from megatron_ultralong.data.rows.manifest import load_manifest
from megatron_ultralong.data.store import shards
from megatron_ultralong.program.errors import InputError

NAMES = ("a", "b", "c d")
SOURCES = parse_sources([f"{name}=x" for name in NAMES])


@given(
    st.none() | st.text(min_size=1).filter(lambda key: "=" not in key),
    st.dictionaries(st.sampled_from(NAMES), st.text(min_size=1)),
    st.randoms(),
)
def test_each_source_has_its_own_or_that_of_all(usual, own, random) -> None:  # type: ignore[no-untyped-def]
    words = [f"{name}={key}" for name, key in own.items()] + ([] if usual is None else [usual])
    random.shuffle(words)
    expected = [own.get(name, usual or "text") for name in NAMES]
    assert [source.text_key for source in with_text_keys(SOURCES, words)] == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x=y"], r"no --source is named 'x' \(they are a, b, c d\).*whole key, --text-key a=x=y"),
        (["=y"], "no --source is named ''"),
        (["a="], "'a=' has no key: give KEY or NAME=KEY"),
        ([""], "'' has no key"),
        (["p", "q"], "all sources two keys, 'p' and 'q': .* such as c d=q"),
        (["a=p", "a=p"], "source 'a' two keys, 'p' and 'p'"),
    ],
)
def test_what_is_ambiguous_is_told(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_text_keys(SOURCES, words)


def test_sources_of_different_keys_are_packed_together(
    config: PrepareConfig,
    library_files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = [path.read_text() for path in library_files[:20]]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[:10])
    (tmp_path / "a.jsonl").write_text(lines)
    pq.write_table(pa.table({"in": [{"x=y": text} for text in texts[10:]]}), tmp_path / "c.parquet")
    config = dataclasses.replace(
        config,
        source=(f"a={tmp_path / 'a.jsonl'}", f"c={tmp_path / 'c.parquet'}"),
        reading=ReadOptions(),
        output=tmp_path / "rows",
    )
    with pytest.raises(InputError, match=r"source 'c': .*--text-key c=KEY names another"):
        prepare(config)
    keyed = dataclasses.replace(config, text_key=("c=in.x=y",))

    # Shards that are kept belong to these keys.
    run, done = shards.ShardJob.run, []

    def interrupted(*words: object) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(words)
        run(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(shards.ShardJob, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(keyed)
    monkeypatch.setattr(shards.ShardJob, "run", run)
    other = dataclasses.replace(keyed, text_key=("c=in.x=y", "a=id"))
    (tmp_path / "a.jsonl").rename(tmp_path / "kept")
    (tmp_path / "a.jsonl").write_text(lines.replace('{"text"', '{"id"'))
    with pytest.raises(InputError, match="started by another command"):
        prepare(other)
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "kept").rename(tmp_path / "a.jsonl")
    capsys.readouterr()
    manifest = prepare(dataclasses.replace(config, text_key=("text", "c=in.x=y")))
    assert "continuing from 1 finished shards" in capsys.readouterr().err
    assert [found.text_key for found in manifest.inputs] == ["text", "in.x=y"]
    assert [found.num_documents for found in load_manifest(config.output).inputs] == [10, 10]


def test_a_source_has_the_usual_key() -> None:
    assert Source("a", "b").text_key == "text"
