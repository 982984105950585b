"""Scores of LV-Eval and InfiniteBench: upstream's, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ultralong.evaluation.local import infinitebench
from megatron_ultralong.evaluation.local.scores import (
    infinitebench_score,
    lv_eval_score,
    normalised,
    normalised_chinese,
)

# Metric, what was written, first answer, keywords, score.
LV_EVAL: list[tuple[Any, str, str, str | None, float]] = [
    # 2 words of 3 written are among the answer's 2: precision 2/3, recall 1.
    ("f1", "Paris, in France.", "paris france", None, 0.8),
    ("f1", "The Paris", "paris", None, 1.0),
    ("f1", "London", "paris", None, 0.0),
    ("f1", "", "paris", None, 0.0),
    ("f1", "paris paris", "paris", None, 2 / 3),
    # Keywords: at least a fifth of them, stop words not counted as found.
    ("f1_keywords", "paris", "paris in france", "paris", 0.5),
    ("f1_keywords", "in france", "paris in france", "rome", 0.0),
    ("f1_keywords", "in france", "paris in france", None, 0.8),
    ("f1_keywords", "in france", "paris in france", "", 0.8),
    ("f1_keywords", "in", "in the city", "in one two three", 0.0),
    ("f1_keywords", "one", "one two", "one two three four five", 2 / 3),
    ("f1_keywords", "one", "one two", "one two three four five six", 0.0),
    ("f1_keywords", "one in", "one two in", "one two in it", 0.8),
    # Chinese, in jieba's words: 北京 | 是 | 首都.
    ("f1_zh", "北京", "北京", None, 1.0),
    ("f1_zh", "北京。", "北京是首都", None, 0.5),
    ("f1_zh", "上海", "北京", None, 0.0),
    # Keywords there: two fifths; without any, the answer's own words.
    ("f1_keywords_zh", "北京", "北京是首都", "北京", 0.5),
    ("f1_keywords_zh", "上海", "上海是城市", "北京", 0.0),
    ("f1_keywords_zh", "北京", "北京是首都", None, 0.0),
    ("f1_keywords_zh", "北京首都", "北京是首都", None, 0.8),
    # ROUGE-L of what is left without stop words and punctuation.
    ("rouge_l_zh", "北京是首都", "北京是首都", None, 1.0),
    ("rouge_l_zh", "北京的首都", "北京是首都", None, 1.0),
    ("rouge_l_zh", "北京", "上海", None, 0.0),
    ("rouge_l_zh", "", "上海", None, 0.0),
]

# Task, what was written, label, score.
INFINITE: list[tuple[str, str, Any, float]] = [
    ("passkey", " 71432.", ["71432"], 1),
    ("passkey", "7 1432", ["71432"], 0),
    ("passkey", "key 71432 or 5", "71432", 1),
    ("passkey", "none", ["71432"], 0),
    ("number_string", "2288448844", ["2288448844"], 1),
    ("number_string", "228844884", ["2288448844"], 0),
    ("kv_retrieval", '"ab-1": "cd-2"}', ["cd-2"], 1),
    ("kv_retrieval", "the value is cd-2.", "cd-2", 1),
    ("kv_retrieval", "cd-23", ["cd-2"], 0),
    ("longdialogue_qa_eng", "Rick: says", ["RICK"], 1),
    ("longdialogue_qa_eng", "Ricky", ["RICK"], 0),
    ("code_run", " The value is 42.", [42], 1),
    ("code_run", "42 is it", [42], 0),
    ("code_run", "-42", [-42], 1),
    ("code_run", "", [42], 0),
    ("math_find", "12", [12], 1),
    ("math_find", "it is 12, not 7", [12], 1),
    ("math_find", "7 or 12", [12], 0),
    ("math_find", "12.5", [12], 0),
    ("math_find", "12.50", [12.5], 1),
    ("math_find", "12", [12.0], 1),
    ("math_find", "none", [12], 0),
    ("math_calc", "[1, 3, 5, 9]", [1, 3, 5, 7], 0.75),
    ("math_calc", "[2, 3, 5, 7]", [1, 3, 5, 7], 0),
    ("math_calc", "1 3 5 7 9", [[1, 3, 5, 7]], 1),
    ("math_calc", "", [1, 3], 0),
    ("code_debug", "B. parse", ["parse", "B"], 1),
    ("code_debug", " B: parse", ["parse", "B"], 1),
    ("code_debug", "The answer is: B", ["parse", "B"], 1),
    ("code_debug", "The correct option is: parse", ["parse", "B"], 1),
    ("code_debug", "The answer is: C", ["parse", "B"], 0),
    ("code_debug", "The answer is:", ["parse", "B"], 0),
    ("code_debug", "B", ["parse", "B"], 0),
    ("longbook_choice_eng", "B", ["Mr. Hill", "B"], 1),
    ("longbook_choice_eng", "Because of C", ["Mr. Hill", "B"], 1),
    ("longbook_choice_eng", "it is: the answer is C", ["Mr. Hill", "B"], 0),
    ("longbook_choice_eng", "the answer is B", ["Mr. Hill", "B"], 1),
    ("longbook_choice_eng", "maybe C or B", ["Mr. Hill", "B"], 0),
    ("longbook_choice_eng", "", ["Mr. Hill", "B"], 0),
    ("longbook_choice_eng", "nothing", ["Mr. Hill", "B"], 0),
    ("longbook_qa_eng", "a house in town", ["the house", "in town"], 0.8),
    ("longbook_qa_eng", "nothing", ["the house"], 0),
    # Characters: 2 of 3 written are among the label's 2.
    ("longbook_qa_chn", "北京市", ["北京"], 0.8),
    ("longbook_qa_chn", "上海", ["北京"], 0),
    ("longbook_sum_eng", "the cat sat", "the cat sat", 1),
    ("longbook_sum_eng", "the cat sat", ["the cat ran"], 2 / 3),
    ("longbook_sum_eng", "", ["the cat ran"], 0),
]


def test_lv_evals_scores_are_upstreams():
    for metric, prediction, answer, keywords, expected in LV_EVAL:
        score = lv_eval_score(metric, prediction, {"answer": answer, "keywords": keywords})
        assert score == pytest.approx(expected, abs=1e-6), (metric, prediction, answer, keywords)
    assert normalised("The cat,  a Dog! an THEN") == "cat dog then"
    assert normalised_chinese(" 北京\uff0c 是。A ") == "北京是a"


def test_infinitebenchs_scores_are_upstreams():
    assert {task for task, *_ in INFINITE} == set(infinitebench.TASKS)
    for task, prediction, label, expected in INFINITE:
        score = infinitebench_score(task, prediction, label)
        assert score == pytest.approx(expected, abs=1e-9), (task, prediction, label)


def test_an_answer_of_endless_digits_is_wrong_and_no_error():
    """Python reads at most 4,300; ``math_calc`` takes answers of 30,000 tokens."""
    endless = "7" * 30_000
    assert infinitebench_score("math_calc", f"1 2 {endless} 4", [1, 2, 3, 4]) == 0.5
    assert infinitebench_score("math_find", endless, [7]) == 0
    assert infinitebench_score("code_run", endless, [7]) == 0


def test_the_first_number_of_a_calculating_chat_is_dropped():
    for prediction, base, chat in (("[1, 3, -1, -11]", 0.0, 1.0), ("[3, 1, 11]", 1.0, 0.0)):
        label = [3, 1, 11]
        assert infinitebench_score("math_calc", prediction, label) == base
        assert infinitebench_score("math_calc", prediction, label, "chat") == chat
