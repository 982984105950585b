"""Random conversations, and Llama 3.1's template as transformers has it, with generation marks."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from megatron_ultralong.data.tokenize.chat_template import TEMPLATES
from tests.models import write_tokenizer

TEMPLATE = (Path(__file__).parent / "golden" / "llama3_1.jinja").read_text(encoding="utf-8")
SHA256 = "e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65"

_WORDS = [
    "the",
    "of",
    "and",
    "long",
    "context",
    "1,048,576",
    "x=1;",
    "def",
    "f(x):",
    "return",
    "\n",
    "\n\n",
    "\t",
    "",
    "",
    "a\u0301",
    "na\xefve",
    "\u6f22\u5b57",
    "\U0001f642",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "'",
    '"',
    "\\",
    "{}",
    "[]",
    "<s>",
    "</s>",
    "3.14",
    "don't",
    "I'LL",
    "\xa0",
    "\u2026",
    "\xbd",
    "---",
    "```",
    "http://a.b/?c=d&",
    "<b>",
    "\r\n",
    "ZWJ\u200d",
]


def marked_template() -> str:
    """The template with ``{% generation %}`` around what the assistant writes."""
    assert hashlib.sha256(TEMPLATE.encode()).hexdigest() == SHA256
    text = _replace(
        TEMPLATE,
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ "
        "message['content'] | trim + '<|eot_id|>' }}",
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
        "{%- if message['role'] == 'assistant' %}{%- generation %}"
        "{{- message['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}"
        "{%- else %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endif %}",
    )
    header = "            {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}\n"
    text = _replace(text, header, "", count=2)
    call = "        {%- if builtin_tools is defined and tool_call.name in builtin_tools %}"
    text = _replace(text, call, header + "{%- generation %}\n" + call)
    end = '            {{- "<|eot_id|>" }}\n        {%- endif %}\n'
    return _replace(text, end, end + "        {%- endgeneration %}\n")


def _replace(text: str, old: str, new: str, count: int = 1) -> str:
    assert text.count(old) == count, (old, text.count(old))
    return text.replace(old, new)


def masked(
    judge: PreTrainedTokenizerFast, messages: list[dict[str, Any]], template: str, **options: Any
) -> Any:
    """``input_ids`` and ``assistant_masks`` by transformers."""
    return judge.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **options,
    )


def random_record(generator: random.Random) -> dict[str, Any]:
    """A conversation in the format ``messages``: some with a system prompt, tools, results."""
    record: dict[str, Any] = {"messages": []}
    messages = record["messages"]
    kind = generator.random()
    if kind < 0.2:
        record["tools"] = [_tool(generator) for _ in range(generator.randint(1, 3))]
    elif kind < 0.35:
        record["builtin_tools"] = generator.sample(
            ["brave_search", "wolfram_alpha", "code_interpreter"], generator.randint(1, 3)
        )
    if generator.random() < 0.5:
        messages.append({"role": "system", "content": random_text(generator)})
    for _ in range(generator.randint(1, 5)):
        messages.append({"role": "user", "content": random_text(generator)})
        if kind < 0.35 and generator.random() < 0.5:
            messages += _call(generator, record)
        messages.append({"role": "assistant", "content": random_text(generator)})
    return record


def random_text(generator: random.Random) -> str:
    """Words and signs of many kinds, white space around them; never white space alone."""
    words = [generator.choice(_WORDS) for _ in range(generator.randint(1, 40))]
    space = generator.choice(["", " ", "\n", "  \t\n"])
    text = space + generator.choice([" ", " ", "", "\n"]).join(words) + space
    return text if text.strip() else "x"


def _tool(generator: random.Random) -> dict[str, Any]:
    properties = {
        f"p{i}": {"type": "string", "description": random_text(generator)} for i in range(2)
    }
    function = {
        "name": generator.choice(["look_up", "größe", "f"]),
        "description": random_text(generator),
        "parameters": {"type": "object", "properties": properties, "required": ["p0"]},
    }
    return {"type": "function", "function": function}


def _call(generator: random.Random, record: dict[str, Any]) -> list[dict[str, Any]]:
    builtin = record.get("builtin_tools")
    if builtin and generator.random() < 0.7:
        function = {
            "name": generator.choice(builtin),
            "arguments": {"query": random_text(generator)},
        }
    else:
        values = [generator.choice([random_text(generator), 3, 1.5, None, [1, "a"], {"b": True}])]
        function = {"name": "look_up", "arguments": {f"p{i}": v for i, v in enumerate(values)}}
    result = generator.choice(
        [random_text(generator), {"found": random_text(generator)}, [1, 2], ""]
    )
    role = generator.choice(["tool", "ipython"])
    return [
        {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]},
        {"role": role, "content": result},
    ]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    """Records, one a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_chat_tokenizer(folder: Path, template: str) -> None:
    """A small vocabulary with the special tokens of Llama 3.1's template, and a template beside."""
    write_tokenizer(folder)
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.add_special_tokens([*TEMPLATES["llama3.1"].special, "<|end_of_text|>"])
    found.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": {"content": "<|end_of_text|>"},
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
