"""``ultralong generate``: what is printed is what transformers writes, as text."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.config.generate import DecodingConfig, GenerateConfig, SamplingConfig
from megatron_ultralong.data.read import record
from megatron_ultralong.generation.continuation import TextStream
from megatron_ultralong.generation.early_checks import check_generation
from megatron_ultralong.generation.generate import ChatPrompt, generate
from megatron_ultralong.program import streams
from megatron_ultralong.program.errors import InputError
from tests.models import TEXT, write_llama, write_tokenizer
from tests.patience import patience

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<h>{{ m['role'] }}</h>{{ m['content'] | trim }}<end>"
    "{% endfor %}{% if add_generation_prompt %}<h>assistant</h>{% endif %}"
)
SPECIAL = ["<bos>", "<h>", "</h>", "<end>", "<eos>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model whose tokenizer has special tokens, a BOS of its own, a template."""
    folder = tmp_path_factory.mktemp("generate")
    source = folder / "source"
    write_llama(source, vocab_size=330, num_hidden_layers=2, max_position_embeddings=128)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_special_tokens(SPECIAL)
    values = json.loads(tokenizer.to_str())
    bos = tokenizer.token_to_id("<bos>")
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<bos>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [bos], "tokens": ["<bos>"]}},
    }
    (source / "tokenizer.json").write_text(json.dumps(values))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "chat_template": TEMPLATE,
    }
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    import_checkpoint(ImportConfig(source, folder / "megatron"))
    return folder


def by_transformers(folder: Path, ids: list[int], num_tokens: int, stop: list[int]) -> list[int]:
    model = LlamaForCausalLM.from_pretrained(folder / "source", dtype=torch.float32).eval()
    prompt = torch.tensor([ids])
    written = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=num_tokens,
        eos_token_id=stop or None,
        pad_token_id=0,
    )[0, len(ids) :].tolist()
    return written[: next((i for i, token in enumerate(written) if token in stop), len(written))]


def config(folder: Path, **changes: object) -> GenerateConfig:
    values = {"load": str(folder / "megatron"), "max_new_tokens": 12, "precision": "fp32"}
    return GenerateConfig(**{**values, **changes})


def test_texts_are_those_of_transformers(folder: Path, tmp_path: Path, capsys) -> None:
    judge = AutoTokenizer.from_pretrained(folder / "source")
    (tmp_path / "prompt.txt").write_text("class A:\n")
    texts = ["def f(x):", "class A:\n"]
    stops = [judge.eos_token_id]
    expected = [
        judge.decode(by_transformers(folder, judge(text).input_ids, 12, stops),
                     skip_special_tokens=True)
        for text in texts
    ]  # fmt: skip
    files = (str(tmp_path / "prompt.txt"),)
    assert generate(config(folder, prompt=("def f(x):",), prompt_file=files)) == expected
    captured = capsys.readouterr()
    assert captured.out == f"--- 0\n{expected[0]}\n--- 1\n{expected[1]}\n"
    assert "prefill" in captured.err
    assert "decode 22 tokens at" in captured.err
    bare = by_transformers(folder, judge(texts[0], add_special_tokens=False).input_ids, 12, stops)
    found = generate(config(folder, prompt=("def f(x):",), add_bos=False))
    assert found == [judge.decode(bare, skip_special_tokens=True)]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(data: bytes) -> None:
        monkeypatch.setattr(streams, "_kept", [])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


def test_standard_input_is_a_prompt(folder: Path, stdin: Callable[[bytes], None]) -> None:
    expected = generate(config(folder, prompt=("def f(x):",)))
    stdin(b"def f(x):")
    wanted = config(folder, prompt_file=("-",))
    assert check_generation(wanted, 1).messages == ["def f(x):"]
    assert generate(wanted) == expected  # it is read once, and asked for twice


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"^--prompt-file - \(standard input\) is empty: pipe a text"),
        (b"x" * 99, r"^--prompt-file - \(standard input\) has more than 98 bytes"),
        (b"\xff", "^--prompt-file - is not UTF-8"),
    ],
)
def test_standard_input_is_checked(
    data: bytes, message: str, folder: Path, stdin: Callable[[bytes], None], monkeypatch: Any
) -> None:
    monkeypatch.setattr(record, "MAX_DOCUMENT_BYTES", 98)
    stdin(data)
    with pytest.raises(InputError, match=message):
        generate(config(folder, prompt_file=("-",)))


def test_ranks_of_torchrun_share_no_standard_input(stdin: Any, monkeypatch: Any) -> None:
    stdin(b"text")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"share one standard input: write .* or .*--ranks"):
        record.read_named_text("--prompt-file", "-")


@pytest.mark.slow
def test_every_rank_has_the_standard_input(folder: Path) -> None:
    words = ["--load", str(folder / "megatron"), "--max-new-tokens", "12", "--precision", "fp32"]
    command = [sys.executable, "-m", "megatron_ultralong", "generate", *words]
    done = subprocess.run(
        [*command, "--context-parallel-size", "2", "--ranks", "2", "--prompt-file", "-"],
        input="def f(x):",
        capture_output=True,
        text=True,
        timeout=patience(120),
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == generate(config(folder, prompt=("def f(x):",)))[0].strip()


def test_a_chat_is_rendered_by_the_template_and_ends_with_its_turn(folder: Path) -> None:
    judge = AutoTokenizer.from_pretrained(folder / "source")
    messages = [{"role": "system", "content": "Be x."}, {"role": "user", "content": "def <h> f?"}]
    expected = judge.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    chat = ChatPrompt(folder / "source")
    assert chat.encode("def <h> f?", "Be x.") == expected
    assert chat.end_ids() == {judge.convert_tokens_to_ids("<end>")}
    written = by_transformers(folder, expected, 12, [*chat.end_ids(), judge.eos_token_id])
    texts = generate(config(folder, prompt=("def <h> f?",), chat=True, system="Be x."))
    assert texts == [judge.decode(written, skip_special_tokens=True)]


class Terminal(io.StringIO):
    """Standard output that says it is a terminal, and keeps every write."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


def test_on_a_terminal_text_comes_as_it_is_written(folder: Path, monkeypatch) -> None:
    plain = generate(config(folder, prompt=("def f(x):",)))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert generate(config(folder, prompt=("def f(x):",))) == plain
    assert terminal.getvalue() == plain[0] + "\n"
    assert len(terminal.pieces) > 5


def test_samples_depend_on_the_seed_and_not_on_the_batch(folder: Path) -> None:
    sampled = config(
        folder, prompt=("def", "class A", "x"), sampling=SamplingConfig(temperature=1.5)
    )
    texts = generate(sampled)
    one_by_one = dataclasses.replace(sampled, decoding=DecodingConfig(2, 1))
    assert generate(one_by_one) == texts
    other = dataclasses.replace(sampled, sampling=SamplingConfig(temperature=1.5, seed=1))
    assert generate(other) != texts


def test_a_prompt_beyond_the_positions_is_warned_of(folder: Path, capsys) -> None:
    generate(config(folder, prompt=("def",), max_new_tokens=130))
    assert "beyond the 128 positions that megatron was trained for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load": ""}, "--load is needed"),
        ({"prompt": ()}, "--prompt TEXT or --prompt-file FILE is needed"),
        ({"system": "Be x."}, "without --chat prompts are plain text"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"max_new_tokens": 2**31 - 1}, r"free memory of a rank holds .* lower --max-new-tokens"),
        ({"prompt": ("",), "add_bos": False}, "prompt 0 has no tokens: .*; give some text"),
        ({"prompt_file": ("absent.txt",)}, r"^--prompt-file absent\.txt does not exist: name a"),
        ({"prompt_file": ("/dev/null",)}, "^--prompt-file /dev/null is not a regular file: name"),
        ({"sampling": SamplingConfig(top_p=0.9)}, r"^--top-p 0\.9: for a choice .* leave it out"),
        ({"sampling": SamplingConfig(top_k=2)}, r"^--top-k 2: for a choice .* leave it out"),
        ({"sampling": SamplingConfig(0, 2, 0.5)}, r"^--top-k 2 and --top-p 0\.5: .* them out"),
        ({"decoding": DecodingConfig(0)}, "prefill_chunk_size must be at least 1, not 0"),
    ],
)
def test_bad_input_is_refused(folder: Path, changes, message) -> None:
    with pytest.raises(InputError, match=message):
        generate(config(folder, **{"prompt": ("def",), **changes}))


def test_folders_of_other_kinds_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model of Hugging Face's, not a Megatron checkpoint"):
        generate(config(folder, load=str(folder / "source"), prompt=("def",)))
    write_tokenizer(tmp_path)
    with pytest.raises(InputError, match="has no chat template"):
        ChatPrompt(tmp_path)


@pytest.mark.parametrize(("lost", "way_out"), [("system", "leave it out"), ("user", "use plain")])
def test_a_template_that_leaves_out_a_message_is_refused(
    tmp_path: Path, lost: str, way_out: str
) -> None:
    write_tokenizer(tmp_path)
    others = "{% for m in messages if m.role not in ['LOST', 'assistant'] %}"
    template = others + "{{ m.content | trim }}{% endfor %}"
    values = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for role in (lost, "nobody"):
        values["chat_template"] = template.replace("LOST", role)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
        chat = ChatPrompt(tmp_path)
        if role == "nobody":
            assert chat.end_ids() == frozenset()  # neither does it end an answer
            assert chat.encode(" x \n", " Be y. ") == chat.encode("x", "Be y.")
            break
        with pytest.raises(InputError, match=f"leaves out the {lost} message .*; {way_out}"):
            chat.encode(" x ", " Be y. ")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, TEXT + "é漢🙂" * 3)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@given(text=st.text(st.sampled_from("de f(x):\né漢🙂\u0301"), max_size=30), half=st.booleans())
def test_a_stream_writes_whole_characters_and_nothing_else(tokenizer, text, half) -> None:
    ids = tokenizer.encode(text).ids
    if half:
        ids = ids[:-1]
    pieces: list[str] = []
    stream = TextStream(lambda some: tokenizer.decode(list(some)), pieces.append)
    for token in ids:
        stream.add(token)
        assert not any(piece.endswith("\N{REPLACEMENT CHARACTER}") for piece in pieces)
    stream.finish()
    assert "".join(pieces) == tokenizer.decode(ids)
