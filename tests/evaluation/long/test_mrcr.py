"""MRCR: scores by hand, and messages and bins of tiny files."""

from __future__ import annotations

import dataclasses
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ultralong.evaluation.local.mrcr import evaluate_mrcr, mrcr_score
from megatron_ultralong.evaluation.local.options import MrcrConfig
from megatron_ultralong.evaluation.results.file import read_result
from megatron_ultralong.program.errors import InputError
from tests.evaluation.long.data import asked, mrcr_row, write_jsonl
from tests.evaluation.test_benchmark import Mortal


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("aYA tapir.", 1.0),
        ("aY", 0.0),  # nothing behind it, and an answer of 8 characters
        ("", 0.0),
        ("A tapir.", 0.0),
        (" aYA tapir.", 0.0),
        ("aY A tapir.", 16 / 17),
        ("aYaYA tapir.", 16 / 18),
        ("aYé\u2028", 0.0),
    ],
)
def test_mrcrs_score_is_the_cards(prediction: str, score: float) -> None:
    references = {"prefix": "aY", "answer": "aYA tapir."}
    assert mrcr_score(prediction, references) == pytest.approx(score)
    assert mrcr_score(f" {prediction}", references, "base") == pytest.approx(score)


def test_mrcr_asks_the_files_messages_and_bins_them_by_length(subject, tmp_path, capsys) -> None:
    rows = [mrcr_row(2, words) for words in (1, 1, 60, 400)] + [mrcr_row(4, 1)]
    pq.write_table(pa.Table.from_pylist(rows[:4]), tmp_path / "2needle.parquet")
    write_jsonl(tmp_path / "4needle" / "4needle_0.jsonl", rows[4:])
    config = MrcrConfig(
        data=str(tmp_path),
        tasks=("2needle", "4needle"),
        max_new_tokens=16,
        output=str(tmp_path / "out"),
        micro_batch_size=2,
    )
    own, texts = asked(subject)
    result = evaluate_mrcr(config, own)
    counts = {(cell.row, cell.column): cell.num_samples for cell in result.cells}
    assert counts == {("2needle", "256"): 2, ("2needle", "2048"): 1, ("4needle", "256"): 1}
    assert "left out, longer than 4,096 tokens: 1 question" in result.notes
    assert "there more than once, and counted so: 1 question" in result.notes
    said = capsys.readouterr()
    assert "warning: 1 of 4 questions in --data" in said.err
    assert result.notes[0] == "grading of openai/mrcr at 204b0d4 of its card"
    assert set(result.material) == {"2needle.parquet", "4needle_0.jsonl", "upstream"}
    roles = ["user", "assistant", "user", "assistant"]
    for text in texts:
        assert re.findall(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n", text) == roles
    turn = (
        "user<|end_header_id|>\n\nPrepend aY0o to the 2nd (1 indexed) poem about tapirs.<|eot_id|>"
    )
    assert turn in texts[0]
    lines = (tmp_path / "out" / "samples.jsonl").read_text("utf-8").split("\n")[:-1]
    assert len(lines) == 4
    for line in lines:
        entry = json.loads(line)
        assert entry["score"] == mrcr_score(entry["prediction"], entry["references"])
    assert read_result(tmp_path / "out" / "mrcr.json") == result
    assert "MRCR of tiny" in said.out
    few = dataclasses.replace(config, lengths=(256,), num_samples=1, output="")
    cells = evaluate_mrcr(few, subject).cells
    assert [(c.row, c.column, c.num_samples) for c in cells] == [
        ("2needle", "256", 1),
        ("4needle", "256", 1),
    ]
    with pytest.raises(InputError, match=r"no question of 2needle in the bins \[1024\] fits"):
        evaluate_mrcr(dataclasses.replace(config, tasks=("2needle",), lengths=(1024,)), subject)


def test_a_killed_mrcr_goes_on_where_it_was(subject, tmp_path) -> None:
    write_jsonl(tmp_path / "2needle.jsonl", [mrcr_row(2, 1, answer=str(n)) for n in range(3)])
    config = MrcrConfig(
        data=str(tmp_path), tasks=("2needle",), max_new_tokens=4, output=str(tmp_path / "out")
    )
    killed = Mortal(subject.model, 2)
    with pytest.raises(KeyboardInterrupt):
        evaluate_mrcr(config, dataclasses.replace(subject, model=killed))
    rest = Mortal(subject.model)
    result = evaluate_mrcr(config, dataclasses.replace(subject, model=rest))
    assert (len(killed.prompts), len(rest.prompts)) == (2, 1)
    assert result == dataclasses.replace(
        evaluate_mrcr(dataclasses.replace(config, output=""), subject),
        date=result.date,
        config=result.config,
    )


def test_bins_are_counted_by_another_tokenizer(subject, tmp_path) -> None:
    """One that has a token for every byte, where this one has longer ones."""
    tokenizer = json.loads((subject.tokenizer.folder / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"]["merges"] = []
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    row = mrcr_row(2, 0)
    row["prompt"] = json.dumps([{"role": "user", "content": "class A:\n    pass\n" * 10}])
    file = write_jsonl(tmp_path / "2needle.jsonl", [row])
    config = MrcrConfig(data=str(file), tasks=("2needle",), max_new_tokens=4)
    assert evaluate_mrcr(config, subject).columns == ("128",)
    config = dataclasses.replace(config, length_tokenizer=str(other))
    result = evaluate_mrcr(config, subject)
    assert result.columns == ("256",)  # 170 bytes and the answer's 12
    assert "by --length-tokenizer" in result.notes[1]
