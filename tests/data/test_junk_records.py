"""Records with junk at any place: a reason, and no traceback."""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import random
from typing import Any

import pytest

from megatron_ultralong.data.read.conversation import ConversationError
from megatron_ultralong.data.read.conversation_formats import parse_conversation
from megatron_ultralong.data.tokenize.chat_template import TEMPLATES, rendered_text
from tests.data.test_data_sets import ANSWER, SYSTEM, TOOLS, USER, called, text

JUNK: list[Any] = [
    None, 0, 1, -1.5, True, "", " ", "a", "null", "[]", "{}", "[1]", '{"a": null}', "\ud800",
    "[" * 99, [], [None], [[]], ["a"], {}, {"a": None}, {"type": "text", "text": "x"},
    [{"type": "text"}],
    {"name": "f"}, {"function": {}}, b"x", datetime.date(2026, 1, 2), float("nan"),
    10**30, ("a", 1),
    "assistant", "system", "tool", {1: 2}, [{"role": "user", "content": "x"}],
]  # fmt: skip
"""Values for any place of a record; parquet has those that JSON has not."""

WHOLE: list[dict[str, Any]] = [
    {"messages": [SYSTEM, *called("f", x=[{"y": 1}]), {**USER, "weight": 1}, ANSWER],
     "tools": TOOLS},
    {"messages": json.dumps([USER, ANSWER]), "tools": json.dumps(TOOLS), "builtin_tools": ["x"]},
    {"messages": [{"role": "user", "content": [text("a"), text("b")]},
                  {**ANSWER, "thinking": "h"}]},
    {"prompt": [SYSTEM, USER], "completion": [ANSWER],
     "tools": [json.dumps(tool) for tool in TOOLS]},
    {"prompt": "a", "completion": "b"},
    {"conversations": [{"from": "human", "value": "a"},
                       {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                       {"from": "observation", "value": "3"}, {"from": "gpt", "value": "b"}],
     "system": "s", "tools": "[]"},
    {"instruction": "a", "input": "b", "output": "c", "system": "s", "history": [["d", "e"]]},
]  # fmt: skip


def replaced(value: Any, generator: random.Random) -> Any:
    """The value with junk at one place of it, or a key or an item more or less."""
    if generator.random() < 0.15 or not isinstance(value, (dict, list)) or not value:
        return generator.choice(JUNK)
    found = copy.copy(value)
    place = generator.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if generator.random() < 0.15:
        del found[place]
    elif generator.random() < 0.1 and isinstance(found, dict):
        found[generator.choice(["weight", "train", "name", "type", "x"])] = generator.choice(JUNK)
    else:
        found[place] = replaced(value[place], generator)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_junk_is_a_reason_and_no_traceback(seed: int) -> None:
    generator, problems, num_good, longest = random.Random(seed), set(), 0, 0
    for _ in range(2000):
        record = generator.choice(WHOLE)
        for _ in range(generator.randint(1, 2)):
            changed = replaced(record, generator)
            record = changed if isinstance(changed, dict) else record
        try:
            chat = parse_conversation(record, "auto", (), generator.choice(["drop", "keep"]))
            for template in TEMPLATES.values():
                with contextlib.suppress(ConversationError):
                    rendered_text(template.render(chat, "1")).encode("utf-8", "surrogatepass")
            num_good += 1
        except ConversationError as error:
            problems.add(error.problem)
            longest = max(longest, len(str(error)))
    assert longest < 600
    assert num_good > 200
    assert len(problems) > 7
