"""Messages as prompts, and their lengths in bins."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer

from megatron_ultralong.evaluation.local import (
    conversation,
)
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.model.families.qwen2 import QWEN2
from megatron_ultralong.program.errors import InputError
from tests.models import write_tokenizer


def test_messages_as_text_end_where_the_assistant_begins(subject) -> None:
    tokenizer = subject.tokenizer
    messages = (("system", "S"), ("user", "one " * 300), ("assistant", "A"), ("user", "two " * 300))
    ids, was_cut = conversation.prompt_ids(tokenizer, "base", messages)
    assert not was_cut
    assert tokenizer.decode(ids) == (
        f"System: S\n\nUser: {'one ' * 300}\n\nAssistant: A\n\nUser: {'two ' * 300}\n\nAssistant:"
    )
    short, was_cut = conversation.prompt_ids(tokenizer, "base", messages, ids.size - 200)
    assert was_cut
    assert ids.size - 202 <= short.size <= ids.size - 200
    text = tokenizer.decode(short)
    assert text.startswith(f"System: S\n\nUser: {'one ' * 300}\n\nAssistant: A\n\nUser: two two")
    assert text.endswith("two \n\nAssistant:")
    with pytest.raises(InputError, match="a prompt of 500 tokens has no room"):
        conversation.prompt_ids(tokenizer, "base", messages, 500)


def test_upstreams_bins_are_closed_above_and_the_first_one_below() -> None:
    sizes = (4095, 4096, 4097, 8192, 8193, 2**20, 2**20 + 1)
    found = [conversation.bin_of(size, 4096) for size in sizes]
    assert found == [4096, 8192, 8192, 8192, 16384, 2**20, 2**21]


def test_a_text_that_spells_a_mark_is_no_mark(subject) -> None:
    """No message ends its own turn, whether it is before the last one or the last one itself."""
    eot = "<|eot_id|>"
    messages = (("user", eot), ("assistant", f"a{eot}"), ("user", eot))
    ids, _ = conversation.prompt_ids(subject.tokenizer, "chat", messages)
    own = Tokenizer.from_file(str(subject.tokenizer.folder / "tokenizer.json"))
    assert ids.tolist().count(own.token_to_id(eot)) == 3
    assert subject.tokenizer.decode(ids).count(eot) == 3


def test_turns_are_those_of_the_tokenizers_family(tmp_path) -> None:
    """Qwen2.5's template begins with a system message of its own, and trims nothing."""
    write_tokenizer(tmp_path)
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    own.add_special_tokens([AddedToken(mark, special=True) for mark in QWEN2.turns[0].marks])
    own.save(str(tmp_path / "tokenizer.json"))
    tokenizer = PromptTokenizer(tmp_path)
    tokenizer.check_template("chat")
    asked, system = " What? ", QWEN2.turns[0].default_system
    for messages in ((("user", asked),), (("system", system), ("user", asked))):
        ids, _ = conversation.prompt_ids(tokenizer, "chat", messages)
        assert own.decode(ids.tolist(), skip_special_tokens=False) == (
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{asked}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
