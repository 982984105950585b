"""Tokenizers that put a space before a text: chats are the tokens that transformers gives them."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Sequence
from transformers import PreTrainedTokenizerFast

from megatron_ultralong.data.read.conversation import Conversation, Message
from megatron_ultralong.data.tokenize.chat_encoder import ChatEncoder
from megatron_ultralong.data.tokenize.chat_template import TEMPLATES, TemplateName
from megatron_ultralong.data.tokenize.engines import choose_tokenizer
from megatron_ultralong.data.tokenize.tokenising import named_tokens
from megatron_ultralong.evaluation.local.prompt import prompt_ids
from megatron_ultralong.generation.folder_tokenizer import FolderTokenizer
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer, prompt_parts
from megatron_ultralong.program.errors import InputError

WORDS = ["user", "assistant", "system", " hello", " world", " how", " are", " you", "hello", "how"]
SPACES = {
    "first": Metaspace(prepend_scheme="first", split=False),  # Mistral 7B v0.3, Llama 2 not legacy
    "first of a sequence": Sequence([Metaspace(prepend_scheme="first", split=True)]),
    "always": Metaspace(prepend_scheme="always", split=False),
    "never": Metaspace(prepend_scheme="never", split=False),
    "prepended": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    "bytes": ByteLevel(add_prefix_space=True),
}
TEXTS = ("hello world", "how are you", "hello", " x \n y", "how\n", "", " you")
NAMES: tuple[TemplateName, ...] = ("plain", "llama3", "llama3.1", "qwen2.5", "qwen3")


def write(folder: Path, spaces: str, **marks: bool) -> Path:
    """A tokenizer with the special tokens of all templates."""
    tokenizer, part = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>")), SPACES[spaces]
    is_normalizer = isinstance(part, normalizers.Normalizer)
    setattr(tokenizer, "normalizer" if is_normalizer else "pre_tokenizer", part)
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    decoder += [decoders.Strip(" ", 1, 0)] if spaces != "never" else []  # as published ones have it
    tokenizer.decoder = decoders.Sequence(decoder)
    alphabet = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(33, 127))]
    if spaces == "bytes":
        tokenizer.decoder, alphabet = decoders.ByteLevel(), ["<unk>", *ByteLevel.alphabet()]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=alphabet, show_progress=False)
    tokenizer.train_from_iterator(WORDS * 3, trainer)
    values = json.loads(tokenizer.to_str())
    values["added_tokens"] = values["added_tokens"][:1]  # bytes are vocabulary
    tokenizer = Tokenizer.from_str(json.dumps(values))
    names = {name for template in TEMPLATES.values() for name in template.special} - {"<eos>"}
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, **marks) for name in sorted({*names, "</s>"})]
    )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return folder


@pytest.mark.parametrize("spaces", SPACES)
def test_chats_are_the_tokens_of_transformers(tmp_path: Path, spaces: str) -> None:
    folder = write(tmp_path, spaces)
    judge = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = choose_tokenizer(folder, "auto").tokenizer
    compared: Counter[str] = Counter()
    for name, (first, second) in itertools.product(NAMES, itertools.product(TEXTS, repeat=2)):
        chat = tuple(map(Message, ("system", "user", "assistant", "user"), (first, second) * 2))
        template = TEMPLATES[name]
        pieces = template.render(Conversation(chat), "today")
        judge.chat_template = template.jinja_with("today")
        messages = [{"role": one.role, "content": one.content} for one in chat]
        expected = judge.apply_chat_template(messages, return_dict=False)
        found = None
        with contextlib.suppress(InputError):  # the line before an answer may share a token with it
            (found,) = ChatEncoder(template, tokenizer).encode([pieces])
        if found is not None:
            assert found.tokens.tolist() == expected, (name, first, second)
            compared[name] += 1
    # a byte-level tokenizer with a space before each text cannot tell where an answer begins
    assert min(compared[name] for name in NAMES) >= (14 if spaces != "bytes" else 0), compared
    prompts = PromptTokenizer(folder)
    for text, answer in itertools.product(TEXTS[:4], TEXTS):
        parts = prompt_parts("chat", prompts.turns, (text, answer), (answer, text))
        expected = judge.encode("".join(parts), add_special_tokens=False)
        assert prompts.encode_parts(parts).tolist() == expected
        parts = prompt_parts("chat", prompts.turns, (text.strip(), ""))
        expected = judge.encode("".join(parts), add_special_tokens=False)
        assert prompt_ids(prompts, "chat", [("user", text.strip())])[0].tolist() == expected


def test_special_tokens_have_the_names_that_transformers_gives_them(tmp_path: Path) -> None:
    """Two files name them, and may disagree: which one counts depends on who saved them."""
    folder = write(tmp_path, "never")
    known = ("</s>", "<|im_end|>", None)
    choices = itertools.product(known, (*known, ""), (False, True), (False, True))
    for config, old, is_new, is_object in choices:
        its: dict[str, Any] = {"eos_token": config, "add_eos_token": False}
        if is_new:
            its["added_tokens_decoder"] = {}
        (folder / "tokenizer_config.json").write_text(json.dumps(its))
        (folder / "special_tokens_map.json").unlink(missing_ok=True)
        if old != "":
            token = {"content": old, **dict.fromkeys(("lstrip", "rstrip", "single_word"), False)}
            values = {"eos_token": token if is_object and old else old}
            (folder / "special_tokens_map.json").write_text(json.dumps(values))
        judge = PreTrainedTokenizerFast.from_pretrained(folder)
        # where the newer file names none, the older one is better than nothing
        expected = judge.eos_token or (old if is_new else None) or config
        assert named_tokens(folder).get("eos_token") == (expected or None), (config, old, is_new)


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_a_special_token_that_takes_spaces_is_refused(tmp_path: Path, side: str) -> None:
    folder = write(tmp_path, "never", **{side: True})
    tokenizer = choose_tokenizer(folder, "auto").tokenizer
    message = "tokenizer.json reads a chat as other tokens than its parts: .* instead of .* from"
    with pytest.raises(InputError, match=message):
        ChatEncoder(TEMPLATES["qwen2.5"], tokenizer)
    with pytest.raises(InputError, match=message):
        PromptTokenizer(folder).check_template("chat")


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer", None])
def test_chats_are_read_by_the_file_whatever_class_a_folder_names(
    tmp_path: Path, kind: str | None
) -> None:
    """Llama's class makes another tokenizer of the vocabulary in transformers 5."""
    for spaces in ("first", "always", "never", "prepended"):
        folder = write(tmp_path / spaces, spaces)
        named = {"eos_token": "</s>", "legacy": True} | ({"tokenizer_class": kind} if kind else {})
        (folder / "tokenizer_config.json").write_text(json.dumps(named))
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        prompts, chats = PromptTokenizer(folder), FolderTokenizer(folder, "a test")
        for text in TEXTS:
            parts = prompt_parts("chat", prompts.turns, (text, "how"))
            assert chats.encode("".join(parts)) == prompts.encode_parts(parts).tolist()


@pytest.mark.parametrize("spaces", SPACES)
def test_samples_of_versions_that_wrote_other_ids_are_asked_again(
    tmp_path: Path, spaces: str
) -> None:
    """A journal's samples go by what decides their prompts."""
    decides = PromptTokenizer(write(tmp_path, spaces)).decides("chat")
    assert ("behind" in decides) == spaces.startswith("first")
