"""Which token a character is in, also where a tokenizer writes another text than it was given."""

from __future__ import annotations

import io
import itertools
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from llama_models.llama3 import tokenizer as llama3
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.prepare.chats import prepare_chat
from megatron_ultralong.data.rows.stored import ChatRows
from megatron_ultralong.data.tokenize.chat_encoder import token_at
from megatron_ultralong.data.tokenize.engines import choose_tokenizer, open_reference
from tests.data.chats import write_jsonl

TEXTS = [
    "caf\u00e9 ti\u1ebfng Vi\u1ec7t",
    unicodedata.normalize("NFD", "caf\u00e9 ti\u1ebfng Vi\u1ec7t"),
    unicodedata.normalize("NFD", "\ud55c\uad6d\uc5b4 \u304c \u00e9"),
    "\ufb01ne \u2460 \u212b",
    "A Short ANSWER",
    "a \u2581 b \U0001f642\U0001f468\u200d\U0001f469 c",
    "\U0001f642",
    "x  y\n z",
]
NORMALIZERS = {
    "none": None,
    "NFC": normalizers.NFC(),  # Qwen's
    "NFKC": normalizers.NFKC(),
    "NFD": normalizers.NFD(),
    "lower": normalizers.Lowercase(),
    "accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
}
MARKS = ("<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\\nYou are Qwen, created by "
    "Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}{%- endif -%}"
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' -%}"
    "{% generation %}{{ message.content.lstrip() + '<|im_end|>' }}{% endgeneration %}"
    "{%- else -%}{{ message.content + '<|im_end|>' }}{%- endif -%}{{ '\\n' }}{%- endfor -%}"
)


def write_tokenizer(folder: Path, normalizer: Any) -> None:
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    tokenizer.add_special_tokens(list(MARKS))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    (folder / "chat_template.jinja").write_text(TEMPLATE)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_marks_are_those_of_transformers_whatever_becomes_of_the_text(
    tmp_path: Path, name: str
) -> None:
    write_tokenizer(tmp_path / "its", NORMALIZERS[name])
    pairs = itertools.pairwise([*TEXTS, TEXTS[0]])
    records = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in pairs
    ]
    file = write_jsonl(tmp_path / "a.jsonl", records)
    config = PrepareChatConfig(
        source=(f"x={file}",),
        tokenizer=tmp_path / "its",
        output=tmp_path / "rows",
        chat_template="qwen2.5",
        seq_length=4096,
        valid_fraction=0.0,
    )
    assert prepare_chat(config).learnt == "marked"
    rows = ChatRows(tmp_path / "rows" / "train")
    found = {
        tuple(tokens.tolist()): {n for span in targets.tolist() for n in range(*span)}
        for number in range(len(rows))
        for tokens, targets in rows.examples(number)
    }
    tokenizer = Tokenizer.from_file(str(tmp_path / "its" / "tokenizer.json"))
    judge = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    for record in records:
        expected = judge.apply_chat_template(
            record["messages"],
            chat_template=TEMPLATE,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        mask = found[tuple(expected["input_ids"])]
        assert mask == {n for n, is_in in enumerate(expected["assistant_masks"]) if is_in}


def test_characters_of_a_tokenizer_json_are_those_of_the_library(tmp_path: Path) -> None:
    for number, normalizer in enumerate(NORMALIZERS.values()):
        write_tokenizer(tmp_path / str(number), normalizer)
        tokenizer = choose_tokenizer(tmp_path / str(number), "auto").tokenizer
        library = Tokenizer.from_file(str(tmp_path / str(number) / "tokenizer.json"))
        for text in TEXTS:
            ids, encoding = tokenizer.encode_documents([text])[0], library.encode(text)
            assert encoding.ids == ids.tolist()
            for char in range(len(text)):
                expected = encoding.char_to_token(char)
                found = token_at(tokenizer, text, ids, char)
                assert found in ((expected,) if expected is not None else range(ids.size))


def sentencepiece_file(path: Path, rule: str) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world caf\u00e9 answer"] * 50),
        model_writer=model,
        vocab_size=290,
        byte_fallback=True,
        model_type="bpe",
        normalization_rule_name=rule,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.mark.parametrize("rule", ["identity", "nfkc"])
def test_characters_of_a_sentencepiece_model(tmp_path: Path, rule: str) -> None:
    """Each token stands at its text: from there on it is what the tokens behind it decode to."""
    tokenizer = open_reference(sentencepiece_file(tmp_path / "tokenizer.model", rule))
    for text in ["x\U0001f642\U0001f642y \u6f22 caf\u00e9", *TEXTS]:
        (ids,) = tokenizer.encode_documents([text])
        spans = tokenizer.spans(text, is_behind=False)
        assert len(spans) == ids.size
        starts, stops = np.array(spans).T
        assert (np.diff(starts) >= 0).all()
        assert (starts <= stops).all()
        assert stops[-1] <= len(text)
        places = [token_at(tokenizer, text, ids, char) for char in range(len(text))]
        assert places == sorted(places)
        for char in range(len(text)):
            start, stop = spans[places[char]]
            assert start <= char < stop or text[char].isspace(), (text, char)


def test_characters_of_llama_3s_model() -> None:
    file = Path(llama3.__file__).parent / "tokenizer.model"
    tokenizer = open_reference(file)
    for text in TEXTS:
        (ids,) = tokenizer.encode_documents([text])
        spans = tokenizer.spans(text, is_behind=False)
        for char in range(len(text)):
            first = token_at(tokenizer, text, ids, char)
            assert spans[first][0] <= char
            assert first == 0 or spans[first - 1][0] < spans[first][0]
