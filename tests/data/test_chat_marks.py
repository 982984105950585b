"""What a folder's template marks is learnt, as transformers marks it; and the date it writes."""

from __future__ import annotations

import datetime
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.prepare.chats import prepare_chat
from megatron_ultralong.data.read.options import ChatReadOptions
from megatron_ultralong.data.rows.manifest import ChatManifest
from megatron_ultralong.data.rows.stored import ChatRows
from megatron_ultralong.data.tokenize.chat_encoder import with_marks
from megatron_ultralong.data.tokenize.chat_template import Piece, date_of, resolved_date
from megatron_ultralong.data.tokenize.folder_template import TemplateProcess
from megatron_ultralong.program.errors import InputError
from tests.data.chats import (
    TEMPLATE,
    marked_template,
    masked,
    random_record,
    write_chat_tokenizer,
    write_jsonl,
)

MARKED = marked_template()
CONTENTS_ALONE = MARKED.replace(
    "{{- message['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}",
    "{{- message['content'] | trim }}{%- endgeneration %}{{- '<|eot_id|>' }}",
)
HEADERS_TOO = MARKED.replace(
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{%- if message['role'] == 'assistant' %}{%- generation %}",
    "{%- if message['role'] == 'assistant' %}{%- generation %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}",
).replace(
    "{%- else %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endif %}",
    "{%- else %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}{%- endif %}",
)
LAST_ALONE = MARKED.replace("{%- if message['role'] == 'assistant' %}", "{%- if loop.last %}", 1)
HALF = MARKED.replace(
    "{%- generation %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}",
    "{%- set text = message['content'] | trim + '<|eot_id|>' %}{%- set half = text | length // 2 %}"
    "{{- text[:half] }}{%- generation %}{{- text[half:half + 3] }}{%- endgeneration %}"
    "{{- text[half + 3:] }}",
)
MARKING = {
    "answers": MARKED,
    "contents alone": CONTENTS_ALONE,
    "headers too": HEADERS_TOO,
    "the last alone": LAST_ALONE,
    "three characters in the middle": HALF,
}


def prepare(folder: Path, template: str, records: list[Any], **options: Any) -> ChatManifest:
    folder.mkdir()
    write_chat_tokenizer(folder, template)
    file = write_jsonl(folder / "a.jsonl", records)
    values: dict[str, Any] = {"seq_length": 16384, "valid_fraction": 0.0, **options}
    config = PrepareChatConfig(
        source=(f"x={file}",), tokenizer=folder, output=folder / "rows", **values
    )
    return prepare_chat(config)


def examples_of(folder: Path) -> dict[tuple[int, ...], list[int]]:
    """Masks by tokens."""
    rows, found = ChatRows(folder / "rows" / "train"), {}
    for number in range(len(rows)):
        for tokens, targets in rows.examples(number):
            mask = [0] * len(tokens)
            for start, stop in targets.tolist():
                mask[start:stop] = [1] * (stop - start)
            found[tuple(tokens.tolist())] = mask
    return found


def judge_of(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )


@pytest.mark.parametrize("name", MARKING)
def test_the_marks_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    template = MARKING[name]
    assert name == "answers" or template != MARKED
    generator = random.Random(7)
    records = [random_record(generator) for _ in range(12)]
    manifest = prepare(tmp_path / "rows", template, records)
    assert manifest.learnt == "marked"
    found, judge = examples_of(tmp_path / "rows"), judge_of(tmp_path / "rows")
    num_learnt = 0
    for record in records:
        options = {key: record[key] for key in ("tools", "builtin_tools") if key in record}
        expected = masked(judge, record["messages"], template, **options)
        mask = found.pop(tuple(expected["input_ids"]), None)
        if mask is None:
            assert not any(expected["assistant_masks"]), "nothing is marked: it is not packed"
            continue
        assert mask == expected["assistant_masks"]
        num_learnt += sum(mask)
    assert not found
    assert manifest.splits["train"].num_target_tokens == num_learnt > 0


def test_a_template_without_marks_learns_the_answers(tmp_path: Path) -> None:
    records = [random_record(random.Random(8)) for _ in range(10)]
    one = prepare(tmp_path / "one", TEMPLATE, records)
    other = prepare(tmp_path / "other", MARKED, records)
    assert (one.learnt, other.learnt) == ("assistant", "marked")
    assert examples_of(tmp_path / "one") == examples_of(tmp_path / "other")
    assert prepare(tmp_path / "no", CONTENTS_ALONE, records, check_template=False).learnt == (
        "assistant"
    )
    assert examples_of(tmp_path / "one") == examples_of(tmp_path / "no")


def test_a_weight_of_0_is_stronger_than_a_mark(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "b"}
    user = {"role": "user", "content": "a"}
    record = {"messages": [user, {**answer, "weight": 0}, user, answer]}
    prepare(tmp_path / "rows", HEADERS_TOO, [record])
    (mask,) = examples_of(tmp_path / "rows").values()
    # header, role, end of header, empty line, content, end: of the second answer alone
    (tokens,) = examples_of(tmp_path / "rows")
    text = judge_of(tmp_path / "rows").decode([t for t, m in zip(tokens, mask, strict=True) if m])
    assert text == "<|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|>"


def test_a_template_that_refuses_one_conversation_has_it_counted(tmp_path: Path) -> None:
    template = MARKED.replace(
        "{{- bos_token }}",
        "{{- bos_token }}{%- if 'xyz' in messages[0].content %}{{ raise_exception('not xyz') }}"
        "{%- elif 'zyx' in messages[0].content %}{{ 'other' }}{%- endif %}",
        1,
    )
    records = [
        {"messages": [{"role": "user", "content": c}, {"role": "assistant", "content": "b"}]}
        for c in ("xyz", "zyx", "a")
    ]
    with pytest.raises(InputError, match=r"a.jsonl:1: beyond the template: .*not xyz"):
        prepare(tmp_path / "stop", template, records)
    manifest = prepare(tmp_path / "skip", template, records, reading=ChatReadOptions(skip_bad=True))
    assert manifest.sources[0].num_bad == {"beyond the template": 2}


def talk(*contents: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {
        "messages": [{"role": roles[n % 2], "content": c} for n, c in enumerate(contents)],
        **more,
    }


TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}
CALLS = talk("q", "a", tools=[TOOL])
CALLS["messages"][1:1] = [
    {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "found"}
]  # fmt: skip
CONTENT = "message['content'] | trim + '<|eot_id|>'"
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "other words for tools": (
        "Given the following functions",
        "You have",
        talk("q", "a", tools=[TOOL]),
    ),
    "another call": ("'\"parameters\": '", "'\"arguments\": '", CALLS),
    "results as they are": ("message.content | tojson", "message.content", CALLS),
    "without thoughts": (
        CONTENT,
        "message['content'].split('</think>')[-1] | trim + '<|eot_id|>'",
        talk("q", "<think>x</think>a", "q", "<think>y</think>b"),
    ),
    "without thoughts and the lines behind them": (
        CONTENT,
        "message['content'].replace('<think>\\n\\n</think>\\n\\n', '') | trim + '<|eot_id|>'",
        talk("q", "<think>\n\n</think>\n\na"),
    ),
    "without a mark": (
        CONTENT,
        "message['content'].replace('[END]', '') | trim + '<|eot_id|>'",
        talk("q", "a [END] b"),
    ),
    "an error": (
        CONTENT,
        'message[\'content\'] | trim + (raise_exception("no") if "/no_think" in message.content '
        "else '<|eot_id|>')",
        talk("q /no_think", "a"),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_two_templates_write_otherwise_is_found_where_it_is(tmp_path: Path, name: str) -> None:
    """They write plain conversations alike, and the folder's is what engines write."""
    old, new, record = OTHERS[name]
    assert old in TEMPLATE
    template = TEMPLATE.replace(old, new)
    plain = [talk("Hello, you?", "I am: fine", '2 < 3, "or"?', "Yes")]
    assert prepare(tmp_path / "plain", template, plain).folder_template_checked
    with pytest.raises(InputError, match=r"a.jsonl:2: beyond the template: .*"):
        prepare(tmp_path / "stop", template, [*plain, record])
    reading = ChatReadOptions(skip_bad=True)
    manifest = prepare(tmp_path / "skip", template, [*plain, record], reading=reading)
    assert manifest.sources[0].num_bad == {"beyond the template": 1}
    manifest = prepare(tmp_path / "no", template, [*plain, record], check_template=False)
    assert manifest.sources[0].num_bad == {}
    assert prepare(tmp_path / "same", TEMPLATE, [*plain, record]).sources[0].num_bad == {}


@pytest.mark.parametrize(
    "template",
    [
        "{% macro m() %}x{% generation %}b{% endgeneration %}{% endmacro %}a{{ m() }}",
        "a{% filter upper %}xx{% generation %}b{% endgeneration %}{% endfilter %}",
        "a{% set x %}x{% generation %}b{% endgeneration %}{% endset %}{{ x }}",
        "{% generation %}x{% generation %}b{% endgeneration %}{% endgeneration %}",
    ],
)
def test_marks_that_nobody_can_place_are_refused(template: str) -> None:
    """transformers marks other characters there."""
    with (
        TemplateProcess(template, "a folder") as process,
        pytest.raises(InputError, match="stands in a macro, a filter or another one"),
    ):
        process.render()


def test_pieces_are_cut_at_marks() -> None:
    pieces = [
        Piece("<s>", True),
        Piece("abc"),
        Piece("de", is_never_target=True),
        Piece("<e>", True),
    ]
    found = with_marks(pieces, [(4, 5), (5, 5), (7, 9)], "")
    assert [(p.text, p.is_target) for p in found] == [
        ("<s>", False), ("a", False), ("b", True), ("c", False), ("d", False), ("e", False),
        ("<e>", True),
    ]  # fmt: skip


DATED = TEMPLATE.replace(
    '{%- set date_string = "26 Jul 2024" %}',
    '{%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}'
    '{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}',
)
"""As Llama 3.2's: the day's date where it is given none."""
RECORD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


@pytest.mark.parametrize(
    ("template", "date", "own"),
    [
        (TEMPLATE, "26 Jul 2024", "same"),
        (TEMPLATE, "28 Nov 2026", "fixed"),
        (DATED, "26 Jul 2024", "today"),
        (DATED, "28 Nov 2026", "today"),
    ],
)
def test_the_date_is_stated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str, date: str, own: str
) -> None:
    manifest = prepare(tmp_path / "rows", template, [RECORD], date_string=date)
    assert (manifest.date_string, manifest.folder_template_date) == (date, own)
    (tokens,) = examples_of(tmp_path / "rows")
    assert f"Today Date: {date}\n" in judge_of(tmp_path / "rows").decode(list(tokens))
    said = " ".join(capsys.readouterr().out.split())
    notes = {"same": "", "fixed": "write another date", "today": "write the day's date"}
    assert (f"date {date!r}: engines that" in said) == (own != "same")
    assert notes[own] in said


def test_today_is_the_day_on_which_the_run_began(tmp_path: Path) -> None:
    before = datetime.date.today()
    manifest = prepare(tmp_path / "rows", DATED, [RECORD], date_string="today")
    days = {before, datetime.date.today()}
    assert manifest.date_string in {day.strftime("%d %b %Y") for day in days}
    saved = json.loads((tmp_path / "rows" / "rows" / "chat_manifest.json").read_text())
    assert saved["date_string"] == manifest.date_string
    (tokens,) = examples_of(tmp_path / "rows")
    judge = judge_of(tmp_path / "rows")
    text = judge.decode(list(tokens))
    if len(days) == 1:
        expected = judge.apply_chat_template(
            RECORD["messages"], chat_template=DATED, tokenize=False
        )
        assert text == expected
    assert resolved_date("today", datetime.date(2026, 11, 28)) == "28 Nov 2026"
    assert resolved_date("1 May", before) == "1 May"


def test_a_template_that_asks_for_the_day_itself_gets_the_stated_one(tmp_path: Path) -> None:
    template = DATED.replace("{%- if not date_string is defined %}", "{%- if true %}")
    manifest = prepare(tmp_path / "rows", template, [RECORD], date_string="28 Nov 2026")
    assert (manifest.folder_template_checked, manifest.folder_template_date) == (True, "today")
    assert date_of("28 Nov 2026") == date_of("2026-11-28") == datetime.date(2026, 11, 28)
    assert date_of("spring") is None
