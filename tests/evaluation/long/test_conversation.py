"""Messages as prompts, and their lengths in bins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from megatron_ultralong.evaluation.local import conversation
from megatron_ultralong.evaluation.local.prompt import cut_prompt, prompt_ids
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer, prompt_parts
from megatron_ultralong.model.families.family import Family
from megatron_ultralong.model.families.mistral import MISTRAL
from megatron_ultralong.model.families.qwen2 import QWEN2
from megatron_ultralong.program.errors import InputError
from tests.models import write_tokenizer


def test_messages_as_text_end_where_the_assistant_begins(subject) -> None:
    tokenizer = subject.tokenizer
    messages = (("system", "S"), ("user", "one " * 300), ("assistant", "A"), ("user", "two " * 300))
    ids, was_cut = prompt_ids(tokenizer, "base", messages)
    assert not was_cut
    assert tokenizer.decode(ids) == (
        f"System: S\n\nUser: {'one ' * 300}\n\nAssistant: A\n\nUser: {'two ' * 300}\n\nAssistant:"
    )
    short, was_cut = prompt_ids(tokenizer, "base", messages, ids.size - 200)
    assert was_cut
    assert ids.size - 202 <= short.size <= ids.size - 200
    text = tokenizer.decode(short)
    assert text.startswith(f"System: S\n\nUser: {'one ' * 300}\n\nAssistant: A\n\nUser: two two")
    assert text.endswith("two \n\nAssistant:")
    with pytest.raises(InputError, match="a prompt of 500 tokens has no room"):
        prompt_ids(tokenizer, "base", messages, 500)


def test_upstreams_bins_are_closed_above_and_the_first_one_below() -> None:
    sizes = (4095, 4096, 4097, 8192, 8193, 2**20, 2**20 + 1)
    found = [conversation.bin_of(size, 4096) for size in sizes]
    assert found == [4096, 8192, 8192, 8192, 16384, 2**20, 2**21]


def test_a_text_that_spells_a_mark_is_no_mark(subject) -> None:
    """No message ends its own turn, whether it is before the last one or the last one itself."""
    eot = "<|eot_id|>"
    messages = (("user", eot), ("assistant", f"a{eot}"), ("user", eot))
    ids, _ = prompt_ids(subject.tokenizer, "chat", messages)
    own = Tokenizer.from_file(str(subject.tokenizer.folder / "tokenizer.json"))
    assert ids.tolist().count(own.token_to_id(eot)) == 3
    assert subject.tokenizer.decode(ids).count(eot) == 3


ASKED = " What? "
CHATML = (
    "{{ bos_token }}{% for m in messages %}{% if loop.first and m.role != 'system' and SYSTEM %}"
    "{{ '<|im_start|>system\\n' + SYSTEM + '<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
)
MISTRAL_TURNS = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"


def tokenizer_of(
    folder: Path, family: Family, model_type: str, template: str | None = None
) -> PromptTokenizer:
    """With the marks of ``family``, in a folder whose config names ``model_type``."""
    write_tokenizer(folder)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    marks = dict.fromkeys(["<s>", *family.turns[0].marks])
    own.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    own.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return PromptTokenizer(folder)


def all_prompts(tokenizer: PromptTokenizer) -> list[str]:
    """What the three ways of asking write for one text."""
    tokenizer.check_template("chat")
    own = Tokenizer.from_file(str(tokenizer.folder / "tokenizer.json"))
    found = (
        prompt_ids(tokenizer, "chat", (("user", ASKED),))[0],
        cut_prompt(tokenizer, "chat", ASKED, 10_000)[0],
        tokenizer.encode_parts(prompt_parts("chat", tokenizer.turns, (ASKED, ""))),
    )
    return [own.decode(ids.tolist(), skip_special_tokens=False) for ids in found]


@pytest.mark.parametrize(
    ("model_type", "template", "begin"),
    [
        ("qwen2", None, QWEN2.turns[0].default_system),
        ("llama", None, ""),
        ("llama", "{% set SYSTEM = 'Own.' %}" + CHATML, "<s>Own."),
        ("qwen2", "{% set SYSTEM = '' %}" + CHATML, "<s>"),
        ("llama", "{{ raise_exception('<|im_start|>') }}", ""),
    ],
)
def test_turns_are_those_of_the_tokenizers_family(
    tmp_path: Path, model_type: str, template: str | None, begin: str
) -> None:
    """Qwen2.5 begins with its own system message, in every benchmark; other ChatML does not."""
    tokenizer = tokenizer_of(tmp_path, QWEN2, model_type, template)
    bos, system = "<s>" * begin.startswith("<s>"), begin.removeprefix("<s>")
    first = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    last = f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"
    assert all_prompts(tokenizer) == [bos + first + last] * 3
    given = prompt_ids(tokenizer, "chat", (("system", "S"), ("user", ASKED)))[0]
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert own.decode(given.tolist(), skip_special_tokens=False) == (
        f"{bos}<|im_start|>system\nS<|im_end|>\n{last}"
    )
    assert tokenizer.decides("chat").get("system", "") == system
    assert "system" not in tokenizer.decides("base")


def test_other_turns_than_the_folder_s_template_are_refused(tmp_path: Path) -> None:
    other = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}{% endfor %}"
    tokenizer = tokenizer_of(tmp_path, QWEN2, "llama", other)
    with pytest.raises(InputError, match=r"chat is not the chat template in .*: at character 16"):
        tokenizer.check_template("chat")
    tokenizer.check_template("base")


@pytest.mark.parametrize("template", [None, MISTRAL_TURNS])
def test_a_system_text_without_a_turn_stands_before_the_user_s(
    tmp_path: Path, template: str | None
) -> None:
    tokenizer = tokenizer_of(tmp_path, MISTRAL, "mistral", template)
    assert len(set(all_prompts(tokenizer))) == 1
    messages = (("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for number, written in ((2, "<s>[INST] S\n\na[/INST]"), (4, "<s>[INST] S\n\na[/INST]b</s>")):
        ids, _ = prompt_ids(tokenizer, "chat", messages[:number])
        text = own.decode(ids.tolist(), skip_special_tokens=False)
        assert text == written + "[INST] c[/INST]" * (number == 4)
    with pytest.raises(InputError, match="a message of assistant follows one of system"):
        prompt_ids(tokenizer, "chat", (messages[0], messages[2], messages[3]))
