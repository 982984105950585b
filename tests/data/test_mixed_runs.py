"""Files of two runs in one folder are refused, whichever they are and however alike the runs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.prepare.chats import prepare_chat
from megatron_ultralong.data.rows.manifest import load_chat_manifest, load_manifest, write_manifest
from megatron_ultralong.program.errors import InputError
from tests.data.test_damage import read_chats, read_documents
from tests.models import TEXT, prepare_rows, write_tokenizer

KINDS = ("stream", "whole", "chats")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``stream-1``, ``stream-2`` and so on: the same documents in another order, as many rows."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = folder / "tokenizer"
    write_tokenizer(tokenizer)
    known = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    known.add_special_tokens(["<|end_of_text|>"])
    known.save(str(tokenizer / "tokenizer.json"))
    (tokenizer / "tokenizer_config.json").write_text('{"eos_token": "<|end_of_text|>"}')
    texts = [TEXT[: 30 + 7 * number] + str(number) for number in range(40)]
    for packing, seed in itertools.product(("stream", "whole"), (1, 2)):
        made = {"packing": packing, "valid_fraction": 0, "seed": seed}
        prepare_rows(folder, texts, tokenizer, 128, f"{packing}-{seed}", **made)
    turns = [{"prompt": text[:9], "completion": text[:60]} for text in texts]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, turns)))
    for seed in (1, 2):
        config = PrepareChatConfig(
            source=(f"chats={folder / 'chats.jsonl'}",),
            tokenizer=tokenizer,
            output=folder / f"chats-{seed}",
            seq_length=256,
            chat_template="plain",
            packing="none",
            valid_fraction=0,
            seed=seed,
        )
        prepare_chat(config)
    return folder


def groups(folder: Path) -> list[list[str]]:
    """Files that belong to one thing: the manifest, rows, boundaries, targets."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    names = [name for name in names if not name.endswith(".png")]
    return [list(its) for _, its in itertools.groupby(names, lambda name: name.rpartition(".")[0])]


def mixtures(folder: Path) -> Iterator[list[str]]:
    """Every choice of groups but none and all; and every one of the files alone."""
    its = groups(folder)
    for size in range(1, len(its)):
        for some in itertools.combinations(its, size):
            yield list(itertools.chain(*some))
    yield from ([name] for name in itertools.chain(*its))


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_two_runs(runs: Path, tmp_path: Path, kind: str) -> None:
    read = read_chats if kind == "chats" else read_documents
    first, second = runs / f"{kind}-1", runs / f"{kind}-2"
    digests = [read(first), read(second)]
    assert digests[0] != digests[1]
    found = 0
    for number, names in enumerate(mixtures(first)):
        folder = shutil.copytree(first, tmp_path / str(number))
        for name in names:
            shutil.copy(second / name, folder / name)
        message = ""
        try:
            assert read(folder) == digests[0], names
        except InputError as error:
            message = str(error)
        assert not message or str(folder) in message, names
        found += bool(message)
    assert found > 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_checksums_that_is_gone(runs: Path, tmp_path: Path, kind: str) -> None:
    read = read_chats if kind == "chats" else read_documents
    folder = shutil.copytree(runs / f"{kind}-1", tmp_path / "rows")
    (folder / "train.crc32").unlink()
    with pytest.raises(InputError, match=r"train\.crc32 is not there, and the manifest beside it"):
        read(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_an_earlier_version_state_none(runs: Path, tmp_path: Path, kind: str) -> None:
    read, load = (
        (read_chats, load_chat_manifest) if kind == "chats" else (read_documents, load_manifest)
    )
    folder = shutil.copytree(runs / f"{kind}-1", tmp_path / "rows")
    manifest = load(folder)
    stated = manifest.splits["train"]
    assert len(stated.checksums) == (3 if kind == "chats" else 2)
    old = dataclasses.replace(manifest, splits={"train": dataclasses.replace(stated, checksums={})})
    assert str(old.splits) == str(manifest.splits)  # what runs record of their rows
    file = next(folder.glob("*manifest.json"))
    file.unlink()
    write_manifest(file, old)
    (folder / "train.crc32").unlink()
    assert read(folder) == read(runs / f"{kind}-1")
