"""Tokenizers in GGUF: llama.cpp's name for how they cut a text, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.checkpoint.formats.gguf_tokenizer import (
    _LLAMA3,
    PRE_TOKENIZERS,
    pre_tokenizer,
    tokenizer_values,
)
from megatron_ultralong.program.errors import InputError
from tests.warm.programs import ROOT

TOKENIZER = ROOT / "examples" / "demo" / "base"
PATTERN = {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WITH_PATTERN = {**BYTES, "use_regex": True}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


@pytest.mark.parametrize(
    ("part", "model", "name"),
    [
        (sequence(PATTERN, BYTES), {"ignore_merges": True}, "llama-bpe"),
        (sequence(PATTERN, BYTES), {}, "smaug-bpe"),
        (sequence({"type": "Digits", "individual_digits": True}, WITH_PATTERN), {}, "smollm"),
        (WITH_PATTERN, {}, "gpt-2"),
        (sequence(sequence(WITH_PATTERN)), {}, "gpt-2"),
    ],
)
def test_pre_tokenizers_are_recognised(
    part: dict[str, Any], model: dict[str, Any], name: str
) -> None:
    fast = {"pre_tokenizer": part, "model": {"type": "BPE", **model}}
    assert pre_tokenizer(fast, Path("t")) == name


def test_every_name_is_recognised_somewhere() -> None:
    assert sorted(PRE_TOKENIZERS.values()) == ["gpt-2", "llama-bpe", "qwen2", "smaug-bpe", "smollm"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": {**WITH_PATTERN, "add_prefix_space": True}}, "ByteLevel .*_space.*true"),
        (
            {"pre_tokenizer": sequence({**PATTERN, "pattern": {"Regex": "[a-z]+"}}, BYTES)},
            r"Split \[a-z\]\+, ByteLevel",
        ),
        ({"pre_tokenizer": sequence({**PATTERN, "behavior": "Removed"}, BYTES)}, "Removed"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "Metaspace"),
        ({"pre_tokenizer": None}, "no pre-tokenizer"),
        ({"normalizer": {"type": "NFC"}}, "normalizer NFC"),
        ({"model": {"type": "Unigram", "vocab": []}}, "model Unigram"),
        ({"model": {"type": "BPE", "byte_fallback": True}}, "byte_fallback True"),
        ({"model": {"type": "BPE", "ignore_merges": True}}, "ByteLevel True, ignore_merges"),
    ],
)
def test_others_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    fast = {"pre_tokenizer": WITH_PATTERN, "model": {"type": "BPE"}} | changes
    with pytest.raises(InputError, match=rf"no such tokenizer \(.*{message}.*known: llama-bpe"):
        pre_tokenizer(fast, Path("t"))


def tokenizer(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    values = json.loads((TOKENIZER / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(values | changes))
    shutil.copy(TOKENIZER / "tokenizer_config.json", folder)
    return folder


def adds(*ids: str) -> dict[str, Any]:
    """A post-processor that puts tokens before a text."""
    known = {"<|begin_of_text|>": 4094, "<|end_of_text|>": 4095}
    special = {text: {"id": text, "ids": [known[text]], "tokens": [text]} for text in ids}
    single: list[Any] = [{"SpecialToken": {"id": text, "type_id": 0}} for text in ids]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing", "single": [*single, text], "special_tokens": special,
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
    }  # fmt: skip


def test_tokens_around_a_text(tmp_path: Path) -> None:
    begin = tokenizer(tmp_path / "a", post_processor=adds("<|begin_of_text|>"))
    found = tokenizer_values(begin, 4096, {})
    assert found["tokenizer.ggml.add_bos_token"].value is True
    assert found["tokenizer.ggml.add_eos_token"].value is False
    other = tokenizer(tmp_path / "b", post_processor=adds("<|end_of_text|>"))
    with pytest.raises(InputError, match=r"puts the tokens \[4095\] around a text.*bos alone"):
        tokenizer_values(other, 4096, {})


def test_tokenizers_of_other_models_are_refused(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path / "a")
    with pytest.raises(InputError, match="a token of id 4095, and the model 4000 tokens"):
        tokenizer_values(folder, 4000, {})
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json.*import the checkpoint with it"):
        tokenizer_values(folder, 4096, {})


def test_chat_templates_and_special_tokens(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path / "a")
    (folder / "chat_template.jinja").write_text("main")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "with-tools.jinja").write_text("tools")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"bos_token": None, "pad_token": {"content": "<|end_of_text|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    found = tokenizer_values(folder, 4096, {"bos_token_id": 7, "eos_token_id": [1, 2]})
    named = {key.removeprefix("tokenizer."): one.value for key, one in found.items()}
    assert named["chat_template"] == "main"
    assert named["chat_template.with_tools"] == "tools"
    assert named["chat_templates"] == ["with_tools"]
    ids = {key: named.get(f"ggml.{key}_token_id") for key in ("bos", "eos", "padding")}
    assert ids == {"bos": 7, "eos": 4095, "padding": 4095}
