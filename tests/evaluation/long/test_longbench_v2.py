"""LongBench v2: letters by hand, and tiny files."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ultralong.evaluation.local.longbench_v2 import (
    answer_letter,
    evaluate_longbench_v2,
    longbench_v2_score,
    prompt_text,
)
from megatron_ultralong.evaluation.local.options import LongBenchV2Config
from tests.evaluation.long.data import asked, question, write_jsonl


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("The correct answer is (B)", "B"),
        ("**The correct answer is (B)**", "B"),
        ("The correct answer is **B**.", "B"),
        ("The correct answer is C, not (B).", "C"),
        ("The correct answer is C. The correct answer is (A)", "A"),
        ("The correct answer is: (B)", None),
        ("the correct answer is (B)", None),
        ("The correct answer is (E)", None),
        ("The correct answer is Because", "B"),
        ("(B)", None),
        ("", None),
    ],
)
def test_longbench_v2s_letter_is_upstreams(response: str, letter: str | None) -> None:
    assert answer_letter(response) == letter
    assert longbench_v2_score(response, "B") == (letter == "B")


def test_longbench_v2_counts_every_answer_in_three_columns(subject, tmp_path) -> None:
    rows = [
        question(),
        question(difficulty="hard", length="long", context="word " * 5000),
        question(difficulty="hard", context="$Q$ and $C_A$"),
    ]
    file = write_jsonl(tmp_path / "data.jsonl", rows)
    config = LongBenchV2Config(data=str(file), max_new_tokens=4, output=str(tmp_path / "out"))
    own, texts = asked(subject)
    result = evaluate_longbench_v2(config, own)
    assert result.columns == ("overall", "easy", "hard", "short", "long")
    counts = {cell.column: cell.num_samples for cell in result.cells}
    assert counts == {"overall": 3, "easy": 1, "short": 2, "hard": 2, "long": 1}
    assert {cell.column: cell.figures["num_truncated"] for cell in result.cells}["overall"] == 1
    assert "<text>\nA text \u2028 \u2029 \x85 here.\n</text>" in texts[0]
    assert "question: Which?\nChoices:\n(A) choice A\n(B) choice B" in texts[0]
    assert "<text>\n$Q$ and $C_A$\n</text>" in texts[2]  # upstream fills them in there, too
    assert texts[1].count("<|start_header_id|>") == 2
    assert "Please read the following text" in texts[1]
    assert 'is (insert answer here)".<|eot_id|>' in texts[1]
    assert "lose their middle" in result.notes[1]
    parquet = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    config = LongBenchV2Config(data=str(parquet), max_new_tokens=4, num_samples=1)
    assert [cell.num_samples for cell in evaluate_longbench_v2(config, subject).cells] == [1, 1, 1]


def test_a_mark_in_a_field_stays_text() -> None:
    row = dict.fromkeys(["question", *(f"choice_{letter}" for letter in "ABCD")], "long")
    text = prompt_text({**row, "context": "$Q$ $DOC$ $C_A$"})
    assert "<text>\n$Q$ $DOC$ $C_A$\n</text>" in text
    assert text.count("long") == 5
