"""LV-Eval and InfiniteBench: prompts, files, and bad ones."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from megatron_ultralong.evaluation.local import infinitebench
from megatron_ultralong.evaluation.local.infinitebench import InfiniteBenchConfig
from megatron_ultralong.evaluation.local.local_benchmarks import (
    evaluate_infinitebench,
    evaluate_lv_eval,
)
from megatron_ultralong.evaluation.local.lv_eval import DATA_SETS, LvEvalConfig
from megatron_ultralong.evaluation.local.prompt import cut_prompt
from megatron_ultralong.evaluation.models.facts import model_facts
from megatron_ultralong.evaluation.models.language_models import HuggingFaceModel, Subject
from megatron_ultralong.evaluation.options import CostConfig
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import JsonObject
from tests.models import write_llama, write_tokenizer

COST = CostConfig(estimated_tflops=0.01)


def row(record: dict[str, Any]) -> JsonObject:
    return JsonObject(record, "here")


def test_chat_prompts_of_infinitebench_are_upstreams_messages(tmp_path):
    write_tokenizer(tmp_path)
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    names = ["begin_of_text", "start_header_id", "end_header_id", "eot_id"]
    own.add_special_tokens([AddedToken(f"<|{name}|>", special=True) for name in names])
    own.save(str(tmp_path / "tokenizer.json"))
    tokenizer = PromptTokenizer(tmp_path)
    for task, roles in (
        ("math_calc", ["system", "user", "system", "user", "assistant"]),
        ("passkey", ["system", "user", "assistant"]),
    ):
        record = {"context": "2 + 5 - 1", "input": "Say it."}
        text = infinitebench.prompt_text(task, "chat", row(record))
        messages = infinitebench.messages_before(task, "chat")
        ids, was_cut = cut_prompt(tokenizer, "chat", text, 10_000, messages)
        assert not was_cut
        written = own.decode(ids.tolist(), skip_special_tokens=False)
        assert written.count("<|begin_of_text|>") == 1
        assert re.findall(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n", written) == roles
        assert f"user<|end_header_id|>\n\n{text}<|eot_id|>" in written
        assert written.endswith("assistant<|end_header_id|>\n\n")
    assert infinitebench.prompt_text("math_calc", "chat", row(record)) == "2 + 5 - 1"
    assert infinitebench.messages_before("math_calc", "base") == ()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "tiny"
    write_llama(folder, num_hidden_layers=1, max_position_embeddings=512)
    return folder


@pytest.fixture(scope="module")
def subject(model: Path) -> Subject:
    generator = HuggingFaceModel(model, name="tiny")
    return Subject(generator, model_facts(f"tiny={model}", "fp32"), PromptTokenizer(model), COST)


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture(scope="module")
def lv_eval_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lv_eval")
    for task in DATA_SETS:
        for level in ("16k", "32k"):
            record = {
                "input": "谁" if DATA_SETS[task].metric.endswith("zh") else "Who?",
                "context": "class A: pass\n" * (10 if level == "16k" else 200),
                "answers": ["x1", "not looked at"],
                "answer_keywords": "x1",
                "length": 100,
            }
            name = f"{task}_{level}.jsonl"
            write(folder / (name if level == "16k" else f"{task}/{name}"), [record, record])
    return folder


def test_lv_eval_runs_over_upstreams_files(subject, lv_eval_data, tmp_path, capsys):
    config = LvEvalConfig(
        data=str(lv_eval_data),
        length_levels=("16k", "32k"),
        micro_batch_size=3,
        num_samples=1,
        output=str(tmp_path / "out"),
    )
    result = evaluate_lv_eval(config, subject)
    assert result.rows == tuple(DATA_SETS)
    assert result.columns == ("16k", "32k")
    assert [cell.figures["num_truncated"] for cell in result.cells if cell.column == "32k"] == [
        1
    ] * 11
    short = result.cell("factrecall_en", "16k")
    assert short is not None
    assert (short.num_samples, short.figures["num_truncated"]) == (1, 0)
    assert len(result.material) == 22
    assert "prompts beyond 512 tokens" in result.notes[0]
    assert "the first 1 question" in result.notes[1]
    names = ["evaluation.json", "lv_eval.json", "lv_eval.png", "samples.jsonl"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    lines = (tmp_path / "out" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 22
    assert json.loads(lines[0])["references"] == {"answer": "x1", "keywords": "x1"}
    assert max(json.loads(line)["num_prompt_tokens"] for line in lines) == 512 - 16
    assert "LV-Eval of tiny" in capsys.readouterr().out


def infinite_records(name: str) -> dict[str, Any]:
    record: dict[str, Any] = {"id": 0, "context": "def f(x): return x\n", "input": "Say it."}
    record["answer"] = {"math_find": [5], "math_calc": [1, 2], "code_run": [3]}.get(name, ["abc"])
    if name == "math_find":
        record["input"] = "Answer with one number. The second largest number of the list is:"
    if name == "code_run":
        record["input"] = "Please give me the exact number of the return value of func_1(-3)."
    if name in ("code_debug", "longbook_choice_eng"):
        record["options"] = ["xyz", "abc", "def", "ghi"]
    return record


@pytest.fixture(scope="module")
def infinite_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("infinite")
    for name in infinitebench.TASKS:
        write(folder / f"{name}.jsonl", [infinite_records(name)])
    return folder


def test_infinitebench_runs_over_upstreams_files(subject, infinite_data, tmp_path):
    tasks = tuple(name for name, task in infinitebench.TASKS.items() if task.max_new_tokens < 100)
    config = InfiniteBenchConfig(
        data=str(infinite_data), tasks=tasks, output=str(tmp_path / "out"), micro_batch_size=4
    )
    result = evaluate_infinitebench(config, subject)
    assert result.rows == tasks
    assert result.columns == ("512",)
    with pytest.raises(
        InputError, match=r"longbook_sum_eng takes answers of 1200 tokens, and --max"
    ):
        evaluate_infinitebench(InfiniteBenchConfig(data=str(infinite_data)), subject)


def test_prompts_of_infinitebench_are_upstreams(infinite_data):
    def prompt(name: str, template: str) -> str:
        return infinitebench.prompt_text(name, template, row(infinite_records(name)))

    assert prompt("math_find", "base").startswith(
        "What is the second largest number in the following list?\n\ndef f(x): return x\n\n\nAnswer"
    )
    assert prompt("code_run", "base").startswith("There is a function called func_1 in the")
    assert prompt("code_run", "base").endswith("The value of func_1(-3) is")
    assert "return value of func_1(-3). Be concise." in prompt("code_run", "chat")
    assert prompt("longbook_choice_eng", "base") == (
        "Read the book and answer the question.\n\ndef f(x): return x\n\n\nQuestion: Say it.\n"
        "A. xyz\nB. abc\nC. def\nD. ghi\n\nThe letter of the correct answer is"
    )
    assert prompt("passkey", "base").endswith("\n\nSay it.\n\nThe pass key is")
    assert prompt("longdialogue_qa_eng", "chat").startswith(
        "Below is a dialogue script where one random occurrence of a character name is replaced "
        'with "$$MASK$$", and you should try to guess who that character is.\n\nThe dialogue:\n\n'
    )
    record = infinite_records("code_debug")
    assert infinitebench.labels("code_debug", row(record)) == ["abc", "B"]
    assert infinitebench.labels("code_debug", row({**record, "answer": ["abc", "B"]})) == [
        "abc",
        "B",
    ]
    assert infinitebench.labels("code_debug", row({**record, "answer": "ghi"})) == ["ghi", "D"]
    for task in infinitebench.TASKS:
        for template in ("base", "chat"):
            assert "{" not in prompt(task, template)


def test_the_middle_of_a_long_prompt_is_left_out(subject):
    tokenizer = subject.tokenizer
    text = "".join(f"x{number} = {number}\n" for number in range(300))
    whole, was_cut = cut_prompt(tokenizer, "base", text, 10_000)
    assert not was_cut
    assert tokenizer.decode(whole) == text
    for room in (101, 100, whole.size - 1):
        ids, was_cut = cut_prompt(tokenizer, "base", text, room)
        assert was_cut
        half = room // 2
        np.testing.assert_array_equal(ids, np.concatenate([whole[:half], whole[-half:]]))
    exact, was_cut = cut_prompt(tokenizer, "base", text, whole.size)
    assert not was_cut
    assert exact.size == whole.size


NOT_THERE = [("missing", ...), ("null", None)]
WRONG_ANSWERS: dict[str, list[Any]] = {
    "text": [5, 0.5, True, {}, [], [5], [None], ["a", 5], [["a"]]],
    "code_run": ["42", 4.5, True, {}, [], ["42"], [True], [[42]]],
    "math_find": ["12", True, {}, [], ["12"], [None], [[12]], math.nan],
    "math_calc": [5, "1", {}, [], [[]], ["1"], [True], [1, "2"], [[1], "2", 3.5], [[1.5]]],
}


@pytest.mark.parametrize("task", infinitebench.TASKS)
def test_a_row_without_an_answer_that_can_be_scored_is_refused(subject, tmp_path, task):
    """Before anything is asked."""
    config = InfiniteBenchConfig(data=str(tmp_path), tasks=(task,), output=str(tmp_path / "out"))
    larger = dataclasses.replace(subject.facts, max_positions=100_000)
    changed = dataclasses.replace(subject, facts=larger)
    wrong = WRONG_ANSWERS.get(task, WRONG_ANSWERS["text"])
    messages = [(value, rf"key answer is {state}$") for state, value in NOT_THERE]
    messages += [(value, r":2: answer is .*, it must be an? ") for value in wrong]
    for value, message in messages:
        good = infinite_records(task)
        bad = {key: one for key, one in good.items() if key != "answer"}
        bad |= {} if value is ... else {"answer": value}
        write(tmp_path / f"{task}.jsonl", [good, bad])
        with pytest.raises(InputError, match=message):
            evaluate_infinitebench(config, changed)
    assert not (tmp_path / "out").exists()


def test_options_that_are_no_texts_are_refused(subject, tmp_path):
    config = InfiniteBenchConfig(data=str(tmp_path), tasks=("longbook_choice_eng",))
    for options in ("abcx", None, [1, 2, 3, 4], {"a": 1}):
        write(
            tmp_path / "longbook_choice_eng.jsonl",
            [infinite_records("longbook_choice_eng") | {"options": options}],
        )
        with pytest.raises(InputError, match=r"options is (null|.* must be an array of strings)"):
            evaluate_infinitebench(config, subject)


def test_bad_local_copies_are_refused(subject, lv_eval_data, infinite_data, tmp_path):
    lv_eval = LvEvalConfig(data=str(lv_eval_data), tasks=("cmrc_mixup",), length_levels=("16k",))
    infinite = InfiniteBenchConfig(data=str(tmp_path), tasks=("code_run",))
    for changes, message in (
        ({"data": ""}, "--data is needed"),
        ({"tasks": ("cmrc",)}, "task 'cmrc' is not known; perhaps you meant 'cmrc_mixup'; known"),
        ({"length_levels": ("16k", "16k")}, r"length_levels must be different levels, not \['16k"),
        ({"length_levels": ()}, r"length_levels must be different levels, not \[\]"),
        ({"length_levels": ("1m",)}, r"length_levels \['1m'\] must be among 16k"),
        ({"length_levels": ("64k",)}, r"has no cmrc_mixup_64k\.jsonl and no cmrc_mixup/cmrc"),
        ({"max_length": 4096}, r"--max-length \(4096 tokens\) is beyond the 512 positions"),
        ({"num_samples": -1}, "num_samples must be at least 0, not -1"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_lv_eval(dataclasses.replace(lv_eval, **changes), subject)
    file = tmp_path / "code_run.jsonl"
    good = infinite_records("code_run")
    for text, message in (
        ("", "holds no rows"),
        ("{", ":1: not JSON"),
        (json.dumps(good) + '\n{"input": ""}', r":2: key context is missing"),
        (json.dumps({**good, "input": "f(1)"}), r":1 calls no func_N\(number\)"),
        (json.dumps({**good, "context": 3}), "context is 3, it must be a string"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            evaluate_infinitebench(infinite, subject)
    good = {"input": "谁", "context": "a", "answers": "x", "answer_keywords": "x"}
    for changes, message in (
        ({}, "answers is 'x', it must be an array of strings"),
        ({"answers": []}, "has a question without answers"),
        ({"answers": ["x"], "answer_keywords": ["x"]}, "answer_keywords is an array of 1, it must"),
    ):
        write(tmp_path / "cmrc_mixup_16k.jsonl", [good | changes])
        with pytest.raises(InputError, match=message):
            evaluate_lv_eval(dataclasses.replace(lv_eval, data=str(tmp_path)), subject)
    options = {**infinite_records("code_debug"), "options": ["a"]}
    (tmp_path / "code_debug.jsonl").write_text(json.dumps(options))
    with pytest.raises(InputError, match=":1 has 1 options, and code_debug asks for four"):
        evaluate_infinitebench(dataclasses.replace(infinite, tasks=("code_debug",)), subject)
