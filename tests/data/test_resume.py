"""Killed runs, several workers, two runs at once: the same bytes or a message."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.prepare import documents as module
from megatron_ultralong.data.prepare import shard_key
from megatron_ultralong.data.prepare.documents import prepare
from megatron_ultralong.data.read.options import ReadOptions
from megatron_ultralong.data.read.sources import Source, find_files, parse_sources, with_text_keys
from megatron_ultralong.data.rows.manifest import Manifest
from megatron_ultralong.data.store import shards
from megatron_ultralong.data.tokenize import engines
from megatron_ultralong.program.difference import value_difference
from megatron_ultralong.program.errors import InputError
from tests.data.digests import digests
from tests.patience import patience

# a process that works in small shards: the corpus has one of the usual size
PROGRAM = """
import sys, tyro
from megatron_ultralong.data.prepare import documents as prepare
from megatron_ultralong.data.store import shards
if __name__ == "__main__":
    plan = shards.plan_shards
    prepare.plan_shards = lambda found: plan(found, 20_000)
    prepare.prepare(tyro.cli(prepare.PrepareConfig))
"""


@pytest.fixture
def plain_config(config: PrepareConfig, library_files: list[Path], tmp_path: Path) -> PrepareConfig:
    """Plain JSONL, which is cut into shards, and a folder of files."""
    lines = [json.dumps({"text": path.read_text()}) for path in library_files[:30]]
    (tmp_path / "lines.jsonl").write_text("\n".join([*lines, lines[0]]))
    sources = (f"lines={tmp_path}/lines.jsonl", config.source[1])
    return dataclasses.replace(config, source=sources, output=tmp_path / "rows")


def start(
    config: PrepareConfig, folder: Path, workers: int, first: str = ""
) -> subprocess.Popen[str]:
    (folder / "program.py").write_text(first + PROGRAM)
    words = [f"--source={source}" for source in config.source]
    words += ["--suffix=.py", "--suffix=.jsonl", "--seq-length=512", "--valid-fraction=0.2"]
    words += ["--length-sampling=none", f"--tokenizer={config.tokenizer}", f"--workers={workers}"]
    return subprocess.Popen(
        [sys.executable, str(folder / "program.py"), *words, f"--output={config.output}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )


@pytest.mark.parametrize(("workers", "num_kills"), [(1, 3), (2, 1)])  # starting two takes long
def test_killed_and_continued_the_bytes_are_the_same(
    plain_config: PrepareConfig, tmp_path: Path, workers: int, num_kills: int
) -> None:
    reading = ReadOptions(suffixes=(".py", ".jsonl"))
    plain_config = dataclasses.replace(plain_config, reading=reading)
    prepare(dataclasses.replace(plain_config, output=tmp_path / "undisturbed"))
    partial = tmp_path / ".rows.partial"
    moment = random.Random(workers)
    finished = 0
    for _ in range(num_kills):
        process = start(plain_config, tmp_path, workers)
        # killed when some more shards are in place, at no particular point of the next one
        wanted = finished + moment.randint(1, 6)
        while process.poll() is None and finished < wanted:
            finished = len([p for p in partial.glob("shards-*/*") if "partial" not in p.name])
            time.sleep(0.002)
        time.sleep(moment.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not plain_config.output.exists()
    process = start(plain_config, tmp_path, workers)
    _, errors = process.communicate(timeout=patience(60))
    assert process.returncode == 0, errors
    assert "finished shards in" in errors
    assert digests(plain_config.output) == digests(tmp_path / "undisturbed")
    assert not partial.exists()


def test_shards_cut_lines_nowhere_and_count_from_the_start(tmp_path: Path) -> None:
    texts = [f"{i} " * (i % 7 + 1) for i in range(50)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source, options = Source("a", str(file)), ReadOptions()

    def read_all(plan: list[shards.Shard]) -> list[str]:
        readers = [shards.DocumentReader(source, options, shard.parts) for shard in plan]
        return [document.text for reader in readers for document in reader]

    for shard_bytes in (1, 7, 40, 10_000):
        plan = shards.plan_shards([find_files(source, options)], shard_bytes)
        assert read_all(plan) == texts
        assert sum(shard.num_bytes for shard in plan) == file.stat().st_size
    file.write_text(file.read_text().replace('"49 ', '49 "'))
    plan = shards.plan_shards([find_files(source, options)], 40)
    with pytest.raises(InputError, match=r"a\.jsonl:50: not JSON"):
        read_all(plan)


def test_shards_of_parquet_are_row_groups_and_count_from_the_start(tmp_path: Path) -> None:
    texts = [f"{i} " * (i % 7 + 1) for i in range(50)]
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts}), file, row_group_size=4)
    source, options = Source("a", str(file)), ReadOptions()
    for shard_bytes, num_shards in ((1, 13), (700, None), (10**6, 1)):
        plan = shards.plan_shards([find_files(source, options)], shard_bytes)
        readers = [shards.DocumentReader(source, options, shard.parts) for shard in plan]
        assert [document.text for reader in readers for document in reader] == texts
        assert len(plan) == num_shards or (num_shards is None and 1 < len(plan) < 13)
        assert [r.bytes_read for r in readers] == [shard.num_bytes for shard in plan]
    texts[45] = None  # type: ignore[call-overload]
    pq.write_table(pa.table({"text": texts}), file, row_group_size=4)
    reader = shards.DocumentReader(
        source, options, shards.plan_shards([find_files(source, options)], 1)[11].parts
    )
    with pytest.raises(InputError, match=r"a\.parquet:46: key 'text' has no value"):
        list(reader)
    file.write_bytes(file.read_bytes()[:-100])
    (whole,) = shards.plan_shards([find_files(source, options)], 1)
    with pytest.raises(InputError, match=r"a\.parquet:1: cannot be read .* cut short"):
        list(shards.DocumentReader(source, options, whole.parts))


def test_small_files_share_a_shard(corpus: Path) -> None:
    source = Source("files", f"{corpus}/files")
    plan = shards.plan_shards([find_files(source, ReadOptions(suffixes=(".py",)))] * 2, 100_000)
    assert [shard.number for shard in plan] == list(range(len(plan)))
    assert {shard.input for shard in plan} == {0, 1}
    assert 3 < len(plan) < 30
    assert all(shard.num_bytes <= 100_000 for shard in plan)


def test_two_runs_in_one_output_folder(
    config: PrepareConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, output=tmp_path / "rows")
    copy = module.copy_tokenizer
    messages = []

    def second_run(*arguments: object) -> None:
        with pytest.raises(InputError) as caught:
            prepare(config)
        messages.append(str(caught.value))
        copy(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "copy_tokenizer", second_run)
    prepare(config)
    (message,) = messages
    assert re.search(rf"rows is in use by prepare \(process {os.getpid()} on", message)
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_an_interrupted_run_goes_on_and_another_one_is_refused(
    config: PrepareConfig,
    manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = dataclasses.replace(config, output=tmp_path / "rows")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "copy_tokenizer", interrupt)  # the last step but one
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    assert not config.output.exists()
    assert (tmp_path / ".rows.partial").is_dir()
    said = f"what is finished stays in {tmp_path}/.rows.partial: the same command continues it"
    assert said in capsys.readouterr().err
    # another separator is counted while tokenising
    with pytest.raises(
        InputError,
        match=r"rows\.partial was started by .* its --separator was '<s>', now it is none; .*",
    ):
        prepare(dataclasses.replace(config, separator="none"))
    files = Path(config.source[1].split("=")[1])
    (files / "new.py").write_text("pass")
    with pytest.raises(InputError, match=r"its source 2 was '.*: 31 files of .* it is '.*: 32 fil"):
        prepare(config)
    (files / "new.py").unlink()
    assert "continuing" not in capsys.readouterr().err
    prepare(dataclasses.replace(config, seq_length=256))
    assert "finished shards in" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


CHANGES = {
    "text_key": (
        {"text_key": ("files=id",)},
        "--text-key was text, now it is lines=text, files=id",
    ),
    "source_key": ({"source_key": "id"}, "--source-key was not given, now it is id"),
    "suffixes": ({"suffixes": (".py", ".x")}, "--suffix was .py, now it is .py .x"),
    "file_format": ({"file_format": "text"}, "--file-format was auto, now it is text"),
    "skip_bad": ({"skip_bad": True}, "--skip-bad was not given, now it is given"),
    "max_document_bytes": (
        {"max_document_bytes": 10**7},
        "--max-document-bytes was not given, now it is 10000000",
    ),
    "engine": (
        {"tokenizer_engine": "reference"},
        "--tokenizer-engine was auto (that is gigatoken), now it is reference (that is tokenizers)",
    ),
    "separator": ({"separator": "eos"}, "--separator was '<s>', now it is eos"),
    "separator_in_text": (
        {"separator_in_text": "split"},
        "--separator-in-text was keep or drop, now it is split",
    ),
}
OF_FILES = ("source 1", "source 2", "tokenizer", "versions", "verb")
"""Parts of the record that no flag but a file or a program changes."""


def test_each_part_that_differs_is_told_by_its_flag(config: PrepareConfig, tmp_path: Path) -> None:
    """And by values as one types them, not as the record has them."""
    sources = parse_sources(config.source)

    def record(config: PrepareConfig, reading: ReadOptions) -> dict[str, object]:
        plan = module._plan(config, with_text_keys(sources, config.text_key))
        config = dataclasses.replace(config, reading=reading)
        chosen = plan.chosen.tokenizer
        key = shard_key.shard_key(config, plan.found, plan.shards, chosen, plan.separator)
        return json.loads(json.dumps(key))  # type: ignore[no-any-return]

    usual = record(config, config.reading)
    tokenizer = engines.choose_tokenizer(config.tokenizer, "reference").tokenizer
    assert {*CHANGES, *OF_FILES} == {*usual, "separator_in_text", "verb"}
    for name, (changes, said) in CHANGES.items():
        own = {key: value for key, value in changes.items() if hasattr(config, key)}
        reading = dataclasses.replace(config.reading, **({} if own else changes))
        found = record(dataclasses.replace(config, **own), reading)
        key = "separator" if name == "separator_in_text" else name
        flag, before, now = shard_key.in_words(tokenizer, key, usual[key], found[key])
        assert f"{flag} was {before}, now it is {now}" == said
    told = shard_key.in_words(tokenizer, "tokenizer", "a" * 64, "b" * 64)
    assert told == ("--tokenizer", f"one of SHA-256 {'a' * 16}", f"one of {'b' * 16}")
    assert value_difference("versions", {"numpy": "1", "x": "2"}, {"numpy": "1", "x": "3"}) == (
        *("versions, x", "'2'", "'3'"),
    )


def test_the_rate_is_of_what_is_done_now(
    plain_config: PrepareConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All shards but the last are taken over: the line counts them, the rate does not."""
    plan, run, number = shards.plan_shards, shards.ShardJob.run, [0]
    monkeypatch.setattr(module, "plan_shards", lambda *arguments: plan(*arguments, 20_000))
    config = dataclasses.replace(plain_config, reading=ReadOptions(suffixes=(".py", ".jsonl")))

    def slow(job: shards.ShardJob, shard: shards.Shard, *others: object) -> None:
        number[0] += 1
        if number[0] == 12:
            raise KeyboardInterrupt
        run(job, shard, *others)  # type: ignore[arg-type]
        if number[0] > 12:
            time.sleep(0.05)

    monkeypatch.setattr(shards.ShardJob, "run", slow)
    with pytest.raises(KeyboardInterrupt):
        prepare(config)
    capsys.readouterr()
    start = time.monotonic()
    prepare(config)
    seconds = time.monotonic() - start
    last = [x for x in capsys.readouterr().err.splitlines() if x.startswith("Tokenizing: 100%")]
    found = re.search(r"\(([\d.]+) (k|M)B/.*\), ([\d.]+) (k|M)?B/s", last[-1])
    assert found is not None, last
    total, rate = (float(found[i]) * {"k": 1e3, "M": 1e6}[found[i + 1]] for i in (1, 3))
    # 11 of about 30 shards were there: what is counted beside them took those seconds at most
    assert rate < total / (number[0] - 12) / 0.05
    assert rate * seconds > 0.2 * total


def test_a_small_input_has_small_shards(tmp_path: Path) -> None:
    """So that sixteen workers have a part of a corpus of 300 MB each."""
    gib = 1 << 30
    for num_bytes, mebibytes in ((0, 4), (gib, 4), (4 * gib, 16), (16 * gib, 64), (999 * gib, 64)):
        assert shards.shard_bytes_of(num_bytes) == mebibytes << 20
    line = json.dumps({"text": "tea " * 25_000}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 100)
    (tmp_path / "b.jsonl").write_text(line * 100)
    found = [
        find_files(Source(name, str(tmp_path / f"{name}.jsonl")), ReadOptions()) for name in "ab"
    ]
    plan = shards.plan_shards(found)
    assert [shard.input for shard in plan] == [0, 0, 0, 1, 1, 1]
    assert sum(shard.num_bytes for shard in plan) == 200 * len(line)


def test_shards_are_kept_where_only_the_packing_must_change(
    plain_config: PrepareConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = shards.plan_shards
    monkeypatch.setattr(module, "plan_shards", lambda *arguments: plan(*arguments, 20_000))
    monkeypatch.setattr(module, "SHARD_BYTES", 20_000)
    config = dataclasses.replace(
        plain_config, reading=ReadOptions(suffixes=(".py", ".jsonl")), valid_fraction=0.001
    )
    with pytest.raises(InputError, match=r"split 'valid' .* The tokenized shards stay in .*rows"):
        prepare(config)
    assert not config.output.exists()
    prepare(dataclasses.replace(config, valid_fraction=0.2))
    assert "finished shards in" in capsys.readouterr().err
    assert not (tmp_path / ".rows.partial").exists()


def test_the_reference_takes_over_where_the_fast_engine_differs(
    config: PrepareConfig,
    manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert manifest.tokenizer_engine == "gigatoken"
    encode = engines.FastTokenizer.encode_documents
    # exact on the probes of the start, wrong on the documents
    monkeypatch.setattr(
        engines.FastTokenizer,
        "encode_documents",
        lambda self, texts: [
            ids[:-1] if "import" in text else ids
            for text, ids in zip(texts, encode(self, texts), strict=True)
        ],
    )
    result = prepare(dataclasses.replace(config, output=tmp_path / "rows"))
    assert result.tokenizer_engine == "tokenizers"
    assert "gigatoken's ids differ from those of tokenizers" in result.tokenizer_engine_reason
    assert "documents were tokenized by tokenizers: gigatoken's ids" in capsys.readouterr().err
    for name in ("train.bin", "valid.bin", "train.boundaries.bin"):
        assert digests(tmp_path / "rows")[name] == digests(config.output)[name]
    with pytest.raises(InputError, match="--tokenizer-engine gigatoken: gigatoken's ids differ"):
        prepare(dataclasses.replace(config, output=tmp_path / "b", tokenizer_engine="gigatoken"))


def test_the_first_bad_document_is_named_whichever_worker_finds_one(
    plain_config: PrepareConfig, tmp_path: Path
) -> None:
    file = tmp_path / "lines.jsonl"
    lines = file.read_text().split("\n")
    lines[9] = lines[9][:-1]
    lines[29] = lines[29][:-1]
    file.write_text("\n".join(lines))
    process = start(plain_config, tmp_path, 2)
    _, errors = process.communicate(timeout=patience(60))
    assert process.returncode == 1
    assert re.search(r"InputError: source 'lines': .*lines\.jsonl:10: not JSON", errors)
    assert "jsonl:30" not in errors
    assert not (tmp_path / ".rows.partial").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_ends_with_a_message_and_leaves_nothing(
    plain_config: PrepareConfig, tmp_path: Path, workers: int
) -> None:
    # a file that may not grow fails as one on a full disk does
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
    process = start(plain_config, tmp_path, workers, limit)
    _, errors = process.communicate(timeout=patience(60))
    assert process.returncode == 1
    assert re.search(r"rows cannot be written: .*File too large.*make room on the disk", errors)
    assert not plain_config.output.exists()
    assert not (tmp_path / ".rows.partial").exists()
