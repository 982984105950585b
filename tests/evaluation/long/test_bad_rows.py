"""Damaged and odd rows of all long benchmarks are refused by place and key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from megatron_ultralong.evaluation.local import (
    conversation,
    graphwalks,
    longbench_v2,
    mrcr,
    nolima,
    ruler2,
)
from megatron_ultralong.evaluation.local.conversation import read_rows
from megatron_ultralong.evaluation.local.graphwalks import evaluate_graphwalks
from megatron_ultralong.evaluation.local.longbench_v2 import (
    evaluate_longbench_v2,
    longbench_v2_score,
)
from megatron_ultralong.evaluation.local.mrcr import evaluate_mrcr
from megatron_ultralong.evaluation.local.nolima import Book, evaluate_nolima
from megatron_ultralong.evaluation.local.options import (
    GraphWalksConfig,
    LongBenchV2Config,
    MrcrConfig,
    NoLiMaConfig,
)
from megatron_ultralong.evaluation.local.prompt import prompt_ids
from megatron_ultralong.evaluation.models.facts import model_facts
from megatron_ultralong.evaluation.models.language_models import HuggingFaceModel, Subject
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError
from tests.evaluation.long.data import COST, NEEDLES, mrcr_row, nolima_data, question, write_jsonl
from tests.models import write_llama

MRCR, LONGBENCH = ("2needle.jsonl", mrcr_row(2, 1)), ("data.jsonl", question())
GRAPH = ("graphwalks.jsonl", {"prompt": "a", "answer_nodes": ["a"], "problem_type": "bfs"})


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (MRCR, {"prompt": "{"}, r"2needle\.jsonl:1: prompt is not JSON"),
        (MRCR, {"prompt": "{}"}, "prompt must be an array of messages"),
        (MRCR, {"prompt": "[]"}, "prompt must end with a message of the user"),
        (MRCR, {"prompt": '[{"role": "tool", "content": "a"}]'}, "message 1: role is 'tool', it"),
        (MRCR, {"prompt": '[{"role": "user", "content": 3}]'}, "content is 3, it must be a string"),
        (MRCR, {"prompt": '[{"role": "assistant", "content": "a"}]'}, "must end with a message"),
        (MRCR, {"prompt": "[" * 100 + "]" * 100}, "nested too deeply"),
        (MRCR, {"prompt": json.dumps([{"role": "user", "content": "\n" * 5_000_000}])}, "a run of"),
        (MRCR, {"answer": None}, "key answer is null"),
        (MRCR, {"answer": "a\ud800"}, "key 'answer' has a lone surrogate at character 1"),
        (GRAPH, {"answer_nodes": ["\udfff"]}, "key 'answer_nodes' has a lone surrogate"),
        (LONGBENCH, {"question": "a" * 5_000_000}, "key 'question' has a run of more than"),
        (MRCR, {"random_string_to_prepend": ""}, "random_string_to_prepend is empty"),
        (MRCR, {"n_needles": "2"}, "n_needles is '2', it must be an integer"),
        (MRCR, {"n_needles": 3}, "n_needles is 3, it must be one of 2, 4, 8"),
        (GRAPH, {"answer_nodes": "a"}, "answer_nodes is 'a', it must be an array of strings"),
        (GRAPH, {"problem_type": "dfs"}, "problem_type is 'dfs', it must be one of bfs, parents"),
        (GRAPH, {"prompt": 1}, "prompt is 1, it must be a string"),
        (LONGBENCH, {"answer": "E"}, "answer is 'E', it must be one of A, B, C, D"),
        (LONGBENCH, {"answer": "AB"}, "answer is 'AB'"),
        (LONGBENCH, {"difficulty": "mild"}, "difficulty is 'mild', it must be one of easy, hard"),
        (LONGBENCH, {"choice_D": None}, "key choice_D is null"),
        (LONGBENCH, {"context": ["a"]}, "context is an array of 1, it must be a string"),
    ],
)
def test_bad_rows_are_refused(subject, tmp_path, kind, changes, message) -> None:
    name, row = kind
    file = tmp_path / name
    file.write_text(json.dumps(row | changes) + "\n")
    evaluate: Callable[[], Any] = {
        MRCR[0]: lambda: evaluate_mrcr(MrcrConfig(data=str(file), tasks=("2needle",)), subject),
        GRAPH[0]: lambda: evaluate_graphwalks(
            GraphWalksConfig(data=str(file), tasks=("bfs",)), subject
        ),
        LONGBENCH[0]: lambda: evaluate_longbench_v2(LongBenchV2Config(data=str(file)), subject),
    }[name]
    with pytest.raises(InputError, match=message):
        evaluate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "x"}, "needle 1: id is 'x', it must be four digits"),
        ({"questions": {"onehop": 1}}, "onehop is 1, it must be a string"),
        ({"tests": {}}, "holds no tests"),
        ({"tests": {"T": {}}}, "key input_args is missing"),
        ({"character_set": []}, "has no character_set"),
        ({"task_template": "{haystack.__class__}"}, "it must be a text with {haystack} and"),
        ({"task_template": "{haystack:>9999999999}"}, "it must be a text with {haystack} and"),
        ({"task_template": "{"}, "is no template"),
        ({"needle": "Nobody."}, "has neither {CHAR} nor answers"),
        ({"distractors": {}}, "distractors: key onehop is missing"),
    ],
)
def test_bad_needles_are_refused(subject, tmp_path, changes, message) -> None:
    data = nolima_data(tmp_path, [NEEDLES[0] | changes])
    with pytest.raises(InputError, match=re.escape(message)):
        evaluate_nolima(NoLiMaConfig(data=str(data), lengths=(100,), num_depths=1), subject)


ODD: list[Any] = [
    *(
        None,
        True,
        3,
        -1,
        1.5,
        10**30,
        "",
        "x",
        "\ud800",
        [],
        ["x"],
        [None],
        ["\ud800"],
        {},
        {"x": []},
    ),
    *('[{"role": "user"}]', '[{"role": ["user"], "content": "a"}]', "[[]]", "[1]", "null"),
]


def reading(
    folder: Path, subject: Subject
) -> dict[str, tuple[dict[str, Any], Callable[[Path], None]]]:
    """By benchmark: a good row, and what reads a file of rows up to prompts and scores."""

    def rows(keys: Sequence[str], row_of: Any) -> Callable[[Path], None]:
        def read(file: Path) -> None:
            for values in conversation.read_rows(file, keys):
                row = row_of(file, values)
                row.score("an answer", row.references)
                prompt_ids(subject.tokenizer, "chat", row.messages)
                subject.tokenizer.encode(row.answer)

        return read

    def longbench(file: Path) -> None:
        for row in conversation.read_rows(file, longbench_v2.KEYS):
            longbench_v2_score("an answer", longbench_v2.checked(row)["answer"])
            messages = (("user", longbench_v2.prompt_text(row)),)
            prompt_ids(subject.tokenizer, "chat", messages)

    def needles(file: Path) -> None:
        file.write_text(f"[{file.read_text()}]")
        book = Book("book", "A line.\n" * 100, subject.tokenizer)
        for test in nolima.read_tests(file):
            for place in nolima.placements(test, [book], 20, 2):
                prompt_ids(subject.tokenizer, "chat", place.messages())
                nolima.nolima_score("contains", "an answer", place.answers)

    (folder / "qa_hard").mkdir()
    two = {"question": "Q", "expected_answer": ["x"], "length": 9}
    nested = NEEDLES[0] | {
        "distractors": {"onehop": "D", "twohop": "D"},
        "task_template": "{question}",
    }
    return {
        "mrcr.jsonl": (MRCR[1], rows(mrcr.KEYS, partial(mrcr.row_of, "chat"))),
        "graphwalks.jsonl": (GRAPH[1], rows(graphwalks.KEYS, graphwalks.row_of)),
        "qa_hard/test.jsonl": (two, rows(ruler2.KEYS, ruler2.row_of)),
        "longbench.jsonl": (LONGBENCH[1], longbench),
        "needles.json": (nested, needles),
    }


def test_rows_of_any_values_are_read_or_refused(subject, tmp_path) -> None:
    """Every value of every row is exchanged for odd ones; nothing but a message may come of it."""
    num_read = num_refused = 0
    for name, (good, read) in reading(tmp_path, subject).items():
        changed = [good, *({**good, key: odd} for key in good for odd in ODD)]
        for key in ("tests", "questions", "distractors"):
            inner = good.get(key, {})
            changed += [{**good, key: {**inner, one: odd}} for one in inner for odd in ODD]
        for number, row in enumerate(changed):
            (tmp_path / name).write_text(json.dumps(row) + "\n")
            try:
                read(tmp_path / name)
            except InputError:
                num_refused += 1
                assert number, name  # the good row is read
            else:
                num_read += 1
    assert num_read > 200
    assert num_refused > 400


def test_bad_copies_are_refused(subject, tmp_path) -> None:
    config = MrcrConfig(data=str(tmp_path), tasks=("8needle",))
    with pytest.raises(InputError, match=r"has no 8needle\.parquet and no 8needle\.jsonl and no"):
        evaluate_mrcr(config, subject)
    array = tmp_path / "data.json"
    array.write_text(json.dumps([question()]))
    (row,) = read_rows(array, list(question()))
    assert row == question()
    array.write_text(json.dumps({"data": [question()]}))
    with pytest.raises(InputError, match=r"is one JSON object with its records .*jq -c"):
        evaluate_longbench_v2(LongBenchV2Config(data=str(array)), subject)
    file = write_jsonl(tmp_path / "2needle.jsonl", [mrcr_row(2, 1)])
    with pytest.raises(InputError, match="has no question of 4needle: choose --tasks"):
        evaluate_mrcr(MrcrConfig(data=str(file)), subject)
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(InputError, match="holds no rows"):
        evaluate_mrcr(MrcrConfig(data=str(empty)), subject)
    with pytest.raises(InputError, match=r"needlesets/needle_set\.json"):
        evaluate_nolima(NoLiMaConfig(data=str(nolima_data(tmp_path, name="other"))), subject)
    with pytest.raises(InputError, match=r"num_haystacks \(4\) is more than the 3"):
        evaluate_nolima(NoLiMaConfig(data=str(nolima_data(tmp_path)), num_haystacks=4), subject)
    with pytest.raises(InputError, match="too few or too long lines for 32,000"):
        evaluate_nolima(NoLiMaConfig(data=str(tmp_path), lengths=(32000,)), subject)


def test_chat_needs_the_tokens_of_turns(tmp_path) -> None:
    write_llama(tmp_path, num_hidden_layers=1, max_position_embeddings=64)
    generator, tokenizer = HuggingFaceModel(tmp_path, name="plain"), PromptTokenizer(tmp_path)
    plain = Subject(generator, model_facts(str(tmp_path), "fp32"), tokenizer, COST)
    with pytest.raises(InputError, match=r"has none: use --prompt-template base"):
        evaluate_graphwalks(GraphWalksConfig(lengths=(64,)), plain)
