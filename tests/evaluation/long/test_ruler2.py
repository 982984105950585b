"""RULER v2: scores by hand, and files as upstream's script makes them."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ultralong.evaluation.local import ruler2
from megatron_ultralong.evaluation.local.options import RULER2_TASKS, Ruler2Config
from megatron_ultralong.evaluation.local.ruler2 import evaluate_ruler2
from megatron_ultralong.program.errors import InputError
from tests.evaluation.long.data import asked, write_jsonl


@pytest.mark.parametrize(
    ("match", "prediction", "references", "score"),
    [
        ("all", "They are 12 and 34.", ["12", "34"], 1.0),
        ("all", "12", ["12", "34"], 0.5),
        ("all", "What is IT", ["what is it?"], 2 / 3),  # one of three words is wrong
        ("all", "a b c d e f", ["x y"], 0.0),
        ("all", "12 </think> none", ["12"], 0.0),
        ("all", "no Answer: 12", ["12"], 1.0),
        ("all", "12 Answer: none", ["12"], 0.0),
        ("all", "", ["12"], 0.0),
        ("all", "é\u2028x", ["É\u2028X"], 1.0),
        ("2steps", "Question 1: a\n\nQuestion 1: b", ["b"], 1.0),
        ("2steps", "Question 1: b\n\nQuestion 1: a", ["b"], 0.0),
        ("part", "Paris, France", ["London", "paris"], 1.0),
        ("part", "Document 5:\nParis\n\nLondon", ["Paris"], 0.0),
        ("part", "Document 5:\nParis\n\nParis", ["Paris"], 1.0),
        ("choice", r"so \boxed{B}", ["B"], 1.0),
        ("choice", r"\boxed{A} or \boxed{\text{B. x}}", ["B"], 1.0),
        ("choice", r"\boxed{B", ["B"], 0.0),
        ("choice", r"\boxed {B}", ["B"], 0.0),
        ("choice", "**Answer:** B", ["B"], 1.0),
        ("choice", "Answer: A\nAnswer: B.", ["B"], 1.0),
        ("choice", "answer: b", ["B"], 0.0),
        ("choice", "B", ["B"], 0.0),
        ("choice", "", ["B"], 0.0),
    ],
)
def test_ruler2s_scores_are_upstreams(match: Any, prediction, references, score) -> None:
    assert ruler2.ruler2_score(match, prediction, references) == pytest.approx(score)


def test_words_are_counted_as_levenshtein_counts() -> None:
    for first, second, distance in (("", "a b", 2), ("a b c", "a c", 1), ("a b", "b a", 2)):
        assert ruler2.word_distance(first.split(), second.split()) == distance
        assert ruler2.word_distance(second.split(), first.split()) == distance


def test_ruler2_runs_over_the_files_of_upstreams_script(subject, tmp_path) -> None:
    for task in RULER2_TASKS:
        answer: Any = "B" if ruler2.match_of(task) == "choice" else ["x", "y"]
        row = {"index": 0, "question": f"Find {task}.", "expected_answer": answer, "length": 1000}
        write_jsonl(tmp_path / task / "test.jsonl", [row])
    config = Ruler2Config(data=str(tmp_path), max_new_tokens=40, micro_batch_size=4)
    own, texts = asked(subject)
    result = evaluate_ruler2(config, own)
    assert (result.rows, result.columns) == (RULER2_TASKS, ("1024",))
    assert len(RULER2_TASKS) == len(texts) == 12
    assert [*map(result.metrics.get, RULER2_TASKS[2:7])] == [
        "choice",
        "choice",
        "all",
        "all",
        "2steps",
    ]
    assert "qa_hard/test.jsonl" in result.material
    assert "user<|end_header_id|>\n\nFind qa_hard.<|eot_id|>" in texts[-1]
    bad = tmp_path / "qa_hard" / "test.jsonl"
    for changes, message in (
        ({"expected_answer": "x"}, "expected_answer is 'x', it must be an array of strings"),
        ({"expected_answer": []}, "expected_answer is an array of 0, it must be"),
        ({"length": 0}, "length is 0, it must be an integer of at least 1"),
    ):
        write_jsonl(bad, [row | changes])
        with pytest.raises(InputError, match=message):
            evaluate_ruler2(config, subject)
    bad.unlink()
    with pytest.raises(InputError, match="has no qa_hard/test"):
        evaluate_ruler2(config, subject)
