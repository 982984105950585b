"""Rows of conversations: whole, with their targets, the same every time; what is left out."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.prepare.chats import prepare_chat
from megatron_ultralong.data.read.options import ChatReadOptions
from megatron_ultralong.data.rows.manifest import CHAT_FILE_NAME, ChatManifest, load_chat_manifest
from megatron_ultralong.data.rows.stored import ChatRows, target_mask
from megatron_ultralong.data.tokenize.chat_template import TEMPLATES
from megatron_ultralong.data.tokenize.tokenising import HuggingFaceTokenizer
from megatron_ultralong.program.errors import InputError
from tests.data.chats import TEMPLATE, random_record, write_chat_tokenizer, write_jsonl
from tests.models import write_tokenizer

SEQ_LENGTH = 1024


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vocabulary with the template's tokens, and the template beside it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_chat_tokenizer(folder, TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def config(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> PrepareChatConfig:
    folder = tmp_path_factory.mktemp("chats")
    generator = random.Random(5)
    records = [random_record(generator) for _ in range(120)]
    write_jsonl(folder / "a.jsonl", [*records[:80], records[0]])
    write_jsonl(folder / "b.jsonl", records[80:])
    return PrepareChatConfig(
        source=(f"a={folder / 'a.jsonl'}", f"b={folder / 'b.jsonl'}"),
        tokenizer=tokenizer,
        output=folder / "rows",
        seq_length=SEQ_LENGTH,
        valid_fraction=0.2,
    )


@pytest.fixture(scope="module")
def manifest(config: PrepareChatConfig) -> ChatManifest:
    return prepare_chat(config)


def again(config: PrepareChatConfig, name: str, **changes: Any) -> ChatManifest:
    return prepare_chat(
        dataclasses.replace(config, output=config.output.with_name(name), **changes)
    )


def test_every_conversation_that_fits_stands_whole_in_one_row(
    config: PrepareChatConfig, manifest: ChatManifest, tokenizer: Path
) -> None:
    assert load_chat_manifest(config.output) == manifest
    assert manifest.folder_template_checked
    decode = HuggingFaceTokenizer(tokenizer).decode
    total = 0
    texts: dict[str, set[str]] = {}
    for split, summary in manifest.splits.items():
        rows = ChatRows(config.output / split)
        assert len(rows) == summary.num_rows
        texts[split] = set()
        num_tokens = 0
        for number in range(len(rows)):
            row = rows.row(number)
            real = rows.rows.num_real_tokens(number)
            examples = rows.examples(number)
            assert sum(tokens.size for tokens, _ in examples) == real
            mask = row.loss_mask("block")
            assert mask[max(real - 1, 0) :].sum() == 0
            start = 0
            for tokens, targets in examples:
                text = decode(tokens.tolist())
                assert text.startswith("<|begin_of_text|><|start_header_id|>system")
                texts[split].add(text)
                for first, stop in targets.tolist():
                    assert decode(tokens[:first].tolist()).endswith(
                        "<|start_header_id|>assistant<|end_header_id|>\n\n"
                    )
                    assert decode(tokens[first:stop].tolist()).endswith(
                        ("<|eot_id|>", "<|eom_id|>")
                    )
                own = target_mask(tokens.size, targets)
                np.testing.assert_array_equal(mask[start : start + tokens.size], own)
                num_tokens += int(own.sum())
                start += tokens.size
            chunks = row.read_chunks([(0, 8), (SEQ_LENGTH - 8, SEQ_LENGTH)])
            np.testing.assert_array_equal(chunks[0][:8], rows.rows[number][:8])
        assert len(texts[split]) == summary.num_examples
        assert num_tokens == summary.num_target_tokens
        total += summary.num_examples
    assert not texts["train"] & texts["valid"]
    first, second = manifest.sources
    assert total == first.num_examples + second.num_examples
    assert (first.num_conversations, first.num_duplicates) == (81, 1)
    assert second.num_duplicates == 0
    long = sum(count.num_too_long for count in manifest.lengths)
    assert long == first.num_too_long + second.num_too_long > 0
    assert total + long == 120
    assert (config.output / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_equal_input_gives_equal_bytes(config: PrepareChatConfig, manifest: ChatManifest) -> None:
    assert again(config, "again") == manifest
    for path in config.output.iterdir():
        if path.suffix in (".bin", ".idx"):
            other = config.output.with_name("again") / path.name
            assert path.read_bytes() == other.read_bytes(), path.name


def test_too_long_ones_are_cut_if_asked_and_counted(
    config: PrepareChatConfig, manifest: ChatManifest
) -> None:
    cut = again(config, "cut", too_long="truncate")
    for before, after in zip(manifest.sources, cut.sources, strict=True):
        assert after.num_too_long == 0
        assert after.num_truncated + after.num_nothing_left == before.num_too_long
    assert sum(source.num_nothing_left for source in cut.sources) > 0
    assert max(split.longest for split in cut.splits.values()) == SEQ_LENGTH
    for number in range(len(rows := ChatRows(config.output.with_name("cut") / "train"))):
        for _, targets in rows.examples(number):
            assert len(targets), "nothing to learn is left out"
            assert (targets[:, 0] < targets[:, 1]).all()


def test_one_conversation_a_row_has_the_same_conversations(
    config: PrepareChatConfig, manifest: ChatManifest
) -> None:
    alone = again(config, "alone", packing="none")
    for split, summary in alone.splits.items():
        packed = manifest.splits[split]
        assert summary.num_rows == summary.num_examples == packed.num_examples
        assert summary.num_target_tokens == packed.num_target_tokens
        found = [
            {tokens.tobytes() for n in range(len(rows)) for tokens, _ in rows.examples(n)}
            for rows in (
                ChatRows(config.output / split),
                ChatRows(config.output.with_name("alone") / split),
            )
        ]
        assert found[0] == found[1]
    assert manifest.splits["train"].num_rows < alone.splits["train"].num_rows


def test_a_maximum_below_the_row(config: PrepareChatConfig) -> None:
    short = again(config, "short", max_length=400)
    assert max(split.longest for split in short.splits.values()) <= 400


def test_bad_conversations_are_counted(config: PrepareChatConfig, tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    number = {"function": {"name": "brave_search", "arguments": {"query": 3}}}
    call = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [number]},
        {"role": "tool", "content": "x"},
        {"role": "assistant", "content": "b"},
    ]
    bad = {"messages": call, "builtin_tools": ["brave_search"]}
    write_jsonl(
        tmp_path / "bad.jsonl", [good, bad, {"text": ""}, {"messages": good["messages"][:1]}]
    )
    changes: dict[str, Any] = {
        "source": (f"bad={tmp_path / 'bad.jsonl'}",),
        "output": tmp_path / "rows",
        "valid_fraction": 0.0,
    }
    wanted = dataclasses.replace(config, **changes)
    with pytest.raises(
        InputError, match=r"bad.jsonl:2: bad tool call: argument 'query' of built-in"
    ):
        prepare_chat(wanted)
    assert not (tmp_path / "rows").exists()
    assert not list(tmp_path.glob(".*partial")), "nothing is left behind"
    manifest = prepare_chat(dataclasses.replace(wanted, reading=ChatReadOptions(skip_bad=True)))
    (source,) = manifest.sources
    assert source.num_bad == {"bad tool call": 1, "no assistant turn": 1, "unknown format": 1}
    assert (source.num_conversations, source.num_examples) == (1, 1)


def test_an_empty_source_is_said_to_be(config: PrepareChatConfig, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"1 file at .*empty\.jsonl holds no record at") as refused:
        again(config, "empty", source=(f"a={tmp_path}/empty.jsonl",))
    assert "longer than" not in str(refused.value)
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match=r"0 conversations in 1 file at .*: 1 bad ones") as refused:
        again(
            config,
            "bad",
            source=(f"a={tmp_path}/bad.jsonl",),
            reading=dataclasses.replace(config.reading, skip_bad=True),
        )
    assert "--seq-length" not in str(refused.value)


def test_a_source_without_anything_to_train_on_is_refused(
    config: PrepareChatConfig, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match=r"'a' has nothing to train on: 81 .* longer than 8 tokens"
    ):
        again(config, "nothing", max_length=8)
    with pytest.raises(InputError, match=r"max_length .2000. must be at most seq_length .1024."):
        again(config, "longer", max_length=2000)
    begin = r"split 'valid' has none of the 72 conversations \(1 duplicate left out\) at "
    with pytest.raises(InputError, match=f"{begin}.*: raise it to") as refused:
        again(config, "none held out", valid_fraction=1e-9)
    said = re.search(r"raise it to ([\d.]+), which holds out ([\d,]+) of them", str(refused.value))
    assert said
    found = again(config, "some held out", valid_fraction=float(said[1])).splits
    assert found["valid"].num_examples == int(said[2])
    with pytest.raises(InputError, match=rf"'train' .*: lower it to {re.escape(said[1])}, which"):
        again(config, "all held out", valid_fraction=0.99999999)
    line = Path(config.source[0].partition("=")[2])
    (tmp_path / "one.jsonl").write_text(line.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match=r"none of the 1 conversation at .*: set it to 0, or add"):
        again(config, "one", source=(f"a={tmp_path / 'one.jsonl'}",), valid_fraction=1e-9)


def test_templates_that_do_not_fit_are_refused(config: PrepareChatConfig, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"llama3 is not the template in .*: at character 36 llama3 writes 'user.*', the "
        r"folder's template 'system.*'; use --chat-template llama3\.1, which .*, or give --no",
    ):
        again(config, "other template", chat_template="llama3")
    write_tokenizer(tmp_path)
    with pytest.raises(
        InputError, match=r"llama3\.1 needs the special tokens .*--chat-template plain"
    ):
        again(config, "no special tokens", tokenizer=tmp_path)
    (tmp_path / "chat_template.jinja").write_text("<|im_start|>")
    for is_checked in (True, False):  # nor can a folder's template be left for it
        with pytest.raises(InputError, match=r"llama3\.1 needs the special tokens ") as error:
            again(config, "not kept", tokenizer=tmp_path, check_template=is_checked)
        assert "to train in llama3.1" not in str(error.value)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(InputError, match=r"cannot be rendered .*--no-check-template"):
        again(config, "broken", tokenizer=tmp_path, chat_template="plain")
    (tmp_path / "chat_template.jinja").write_text("<|im_start|>")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "e"}')
    with pytest.raises(
        InputError, match=r"; give --no-check-template to train in plain, which `sft`"
    ):
        again(config, "nobody's", tokenizer=tmp_path, chat_template="plain")


def test_a_plain_template_goes_with_its_rows(config: PrepareChatConfig, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    found = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    found.add_special_tokens(["</s>"])
    found.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    manifest = again(
        config,
        "plain",
        tokenizer=tmp_path,
        chat_template="plain",
        reading=ChatReadOptions(skip_bad=True),
    )
    assert manifest.sources[0].num_bad["beyond the template"] > 0
    folder = config.output.with_name("plain")
    assert (folder / "tokenizer" / "chat_template.jinja").read_text() == TEMPLATES["plain"].jinja
    tokens, targets = ChatRows(folder / "train").examples(0)[0]
    text = HuggingFaceTokenizer(tmp_path).decode(tokens[: targets[0, 0]].tolist())
    assert text.endswith("</s>assistant:\n")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text("")
    with pytest.raises(InputError, match=r"`ultralong prepare chat --source NAME=.*chats.jsonl`"):
        load_chat_manifest(file)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="these are rows of documents"):
        load_chat_manifest(tmp_path)
    (tmp_path / CHAT_FILE_NAME).write_text('{"format_version": 0}')
    with pytest.raises(InputError, match="format_version 0, where this program reads 2"):
        load_chat_manifest(tmp_path)


def test_target_mask() -> None:
    targets = np.asarray([[2, 4], [5, 6]])
    assert target_mask(6, targets).tolist() == [0, 1, 1, 0, 1, 0]


def test_files_of_a_folder_are_looked_at_and_told_as_those_of_documents_are(
    config: PrepareChatConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, generator = tmp_path / "in", random.Random(9)
    lines = [json.dumps(random_record(generator)) + "\n" for _ in range(12)]
    for name in ("data", ".cache", "other"):
        (folder / name).mkdir(parents=True)
    (folder / "data" / "a.json.gz").write_bytes(gzip.compress("".join(lines[:6]).encode()))
    (folder / "data" / "b.txt").write_text("".join(lines[6:]))
    (folder / "other" / "back").symlink_to("..")
    (folder / "other" / "cut.jsonl.gz").write_bytes(gzip.compress(lines[0].encode())[:60])
    for name in ("README.md", ".cache/a.jsonl.metadata", ".gitattributes", "notes.xyz"):
        (folder / name).write_text("nothing of a conversation\n")
    (folder / "array.jsonl").write_text(json.dumps({"data": [json.loads(lines[0])]}, indent=1))
    options = {"source": (f"x={folder}",), "output": tmp_path / "rows", "valid_fraction": 0.0}
    with pytest.raises(InputError, match=r"array\.jsonl is one JSON object with its records.*jq"):
        prepare_chat(dataclasses.replace(config, **options))
    assert not (tmp_path / "rows").exists()
    capsys.readouterr()
    reading = ChatReadOptions(skip_bad=True)
    manifest = prepare_chat(dataclasses.replace(config, **options, reading=reading))
    (source,) = manifest.sources
    assert source.num_conversations == 12
    assert (source.num_bad, source.num_cut_files) == ({"unreadable": 2}, 1)
    read = {line.suffix: line.read_as for line in source.counts if line.read_as}
    assert read == {".json.gz": "jsonl", ".txt": "jsonl", ".jsonl.gz": "jsonl"}
    said = capsys.readouterr().out
    assert "x: 3 files read as jsonl: 1 .json.gz, 1 .jsonl.gz, 1 .txt" in said
    for line in source.counts:
        assert f" {line.reason}: " in said or line.read_as
    assert sum(line.num_files for line in source.counts if line.reason) == 6
    assert "x: of 1 file the rest could not be read" in said
    for name in (
        "array.jsonl: unreadable: is one JSON object",
        "cut.jsonl.gz:1: unreadable: cannot",
    ):
        assert name in said
        assert name in "\n".join(source.refused_files.values())
    assert source.bad == []


def test_conversations_with_texts_of_special_tokens_are_told(
    config: PrepareChatConfig, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the template, as of prompts that were put in one before, and of others: thoughts."""
    before = "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
    thought = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    records: list[dict[str, Any]] = [
        *({"prompt": before, "completion": "a"}, {"prompt": "q", "completion": "<s>a</s>"}),
        {"messages": [thought[0], {**thought[1], "reasoning": "r"}]},
    ]
    write_jsonl(tmp_path / "a.jsonl", records)
    for is_special in (False, True):
        folder = tmp_path / f"tokenizer {is_special}"
        shutil.copytree(tokenizer, folder)
        found = Tokenizer.from_file(str(folder / "tokenizer.json"))
        found.add_tokens([AddedToken("<think>", special=is_special)])
        found.save(str(folder / "tokenizer.json"))
        manifest = prepare_chat(
            dataclasses.replace(
                config,
                source=(f"x={tmp_path / 'a.jsonl'}",),
                tokenizer=folder,
                output=tmp_path / f"rows {is_special}",
                valid_fraction=0.0,
                packing="none",
                reading=ChatReadOptions(reasoning="keep"),
            )
        )
        rows, mark = (
            ChatRows(tmp_path / f"rows {is_special}" / "train"),
            found.token_to_id("<think>"),
        )
        count = sum(mark in tokens for n in range(len(rows)) for tokens, _ in rows.examples(n))
        assert count == (not is_special)
        assert manifest.sources[0].num_with_marks == 1 + is_special
        told = " ".join(capsys.readouterr().out.split())
        assert f"x: {1 + is_special} conversation" in told
        assert "with special tokens in their texts, written as text" in told
        assert load_chat_manifest(tmp_path / f"rows {is_special}") == manifest


def test_the_date_holds_out_no_others(config: PrepareChatConfig, manifest: ChatManifest) -> None:
    """A model is measured on what it has not learnt, also in rows of another day."""
    date = again(config, "dated", date_string="28 Nov 2026")
    assert date.date_string != manifest.date_string
    for split, summary in manifest.splits.items():
        assert date.splits[split].num_examples == summary.num_examples
        found: list[set[str]] = []
        for folder in (config.output, config.output.with_name("dated")):
            rows, decode = ChatRows(folder / split), HuggingFaceTokenizer(config.tokenizer).decode
            numbers = range(len(rows))
            texts = (decode(t.tolist()) for number in numbers for t, _ in rows.examples(number))
            found.append({text.partition("Today Date: ")[2][11:] for text in texts})
        assert found[0] == found[1]
