"""Messages as prompts, and their lengths in bins."""

from __future__ import annotations

import pytest

from megatron_ultralong.evaluation.local import (
    conversation,
)
from megatron_ultralong.program.errors import InputError


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
