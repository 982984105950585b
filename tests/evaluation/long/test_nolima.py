"""NoLiMa: scores by hand, places of needles, and tiny books."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest

from megatron_ultralong.evaluation import finished
from megatron_ultralong.evaluation.local import nolima
from megatron_ultralong.evaluation.local.nolima import Book, evaluate_nolima
from megatron_ultralong.evaluation.local.options import NoLiMaConfig
from megatron_ultralong.program.errors import InputError
from tests.evaluation.long.data import NEEDLES, asked, nolima_data


@pytest.mark.parametrize(
    ("metric", "prediction", "score"),
    [
        ("contains", "It is **Yuki**.", 1),
        ("contains", "yuki", 0),
        ("contains", "", 0),
        ("EM", " Yuki\n", 1),
        ("EM", "Yuki.", 0),
        ("lastline_contains", "Yuki\nno", 0),
        ("lastline_contains", "no\nso Yuki\n", 1),
        ("lastline_EM", "no\nYuki\n", 1),
        ("lastline_EM", "no\n Yuki", 0),
        ("contains", "Veronica or Yuki", 1),
    ],
)
def test_nolimas_score_is_upstreams(metric: Any, prediction: str, score: float) -> None:
    assert nolima.nolima_score(metric, prediction, ["Yuki"]) == score


def test_nolimas_needle_stands_behind_the_line_at_its_depth(subject) -> None:
    tokenizer = subject.tokenizer
    text = "\n".join(f"Line {k} x" for k in range(200))
    book = Book("book", text, tokenizer)
    for length in (50, 200):
        for depth in (0.0, 0.25, 0.5, 1.0):
            before, after = book.place("THE NEEDLE", length, depth).split(" THE NEEDLE\n")
            whole = f"{before}\n{after}" if before else after
            assert whole in text
            start = text.index(whole)
            assert depth or start < 5  # the book's first token is not there, as upstream
            assert text[start + len(before)] == "\n" or not before
            inside = tokenizer.encode(before).size
            assert abs(inside - depth * length) < 12
            assert abs(tokenizer.encode(whole).size - length) <= 3
    with pytest.raises(InputError, match=r"book has 1,\d+ tokens, too few or too long lines"):
        book.place("THE NEEDLE", 5000, 0.5)


def test_nolima_runs_over_upstreams_files(subject, tmp_path, capsys) -> None:
    data = nolima_data(tmp_path / "data")
    config = NoLiMaConfig(
        data=str(data),
        lengths=(120, 400),
        num_depths=3,
        num_haystacks=2,
        max_new_tokens=4,
        micro_batch_size=8,
        output=str(tmp_path / "out"),
    )
    own, texts = asked(subject)
    result = evaluate_nolima(config, own)
    assert (result.rows, result.columns) == (("onehop", "twohop"), ("120", "400"))
    assert {cell.num_samples for cell in result.cells} == {2 * 2 * 3}
    assert len(texts) == 48
    head = "system<|end_header_id|>\n\nYou are a helpful assistant<|eot_id|>"
    for text in texts:
        assert head in text
        ((name, house),) = re.findall(r"Actually, (\w+) lives next to the ([\w ]+)\.\n", text)
        (place,) = re.findall(r"Question: Which character has been to (\w+)\?\n\n Return", text)
        assert name in NEEDLES[0]["character_set"]  # type: ignore[operator]
        assert (place in ("Dresden", "Saxony")) == (house == "Semper Opera House")
        assert "snippet:\n\n" in text
        assert "rand_book_10" not in text
        assert "of 10 " not in text
    lines = (tmp_path / "out" / "samples.jsonl").read_text("utf-8").split("\n")[:-1]
    names = [json.loads(line)["references"] for line in lines]
    # numpy's legacy stream: 42 + 401 + number of the book, a draw a depth
    draw = np.random.RandomState(443)
    assert names[:3] == [[str(draw.choice(NEEDLES[0]["character_set"]))] for _ in range(3)]  # type: ignore[call-overload]
    assert any(
        note.startswith("mean over all tests, as upstream has it: 120: ") for note in result.notes
    )
    assert "NoLiMa of tiny" in capsys.readouterr().out
    few = dataclasses.replace(config, output="", num_samples=1, num_depths=1, num_haystacks=1)
    assert {cell.num_samples for cell in evaluate_nolima(few, subject).cells} == {1}


def test_hidden_files_are_no_books(subject, tmp_path) -> None:
    """They were read, and changed ones counted as the same: a finished evaluation was kept."""
    data = nolima_data(tmp_path / "data")
    config = NoLiMaConfig(
        data=str(data), lengths=(120,), num_depths=1, max_new_tokens=2, micro_batch_size=8
    )
    before, texts = finished.question("nolima", config), []
    for _ in range(2):
        own, its_texts = asked(subject)
        evaluate_nolima(config, own)
        texts.append([*its_texts])
        book = data / "haystack" / "rand_shuffle" / "rand_book_1.txt"
        book.with_name(f"._{book.name}").write_text(book.read_text().replace("sails", "rows"))
    assert texts[0] == texts[1]
    assert finished.question("nolima", config) == before


def test_nolimas_distractor_keeps_away_from_the_needle(subject, tmp_path) -> None:
    needles = [{**NEEDLES[0], "distractors": {"onehop": "I saw {1}.", "twohop": "I saw {1}."}}]
    data = nolima_data(tmp_path / "data", needles, "needle_set_w_Distractor")
    config = NoLiMaConfig(
        data=str(data), needle_set="needle_set_w_Distractor", lengths=(2000,), num_depths=3,
        num_haystacks=1, max_new_tokens=2, micro_batch_size=3,
    )  # fmt: skip
    own, texts = asked(subject)
    evaluate_nolima(config, own)
    assert len(texts) == 12
    for text in texts:
        book = text.split("snippet:\n\n")[1].split("\n\nUse the")[0]
        assert book.count("I saw the ") == 1
        distance = abs(book.index("I saw the ") - book.index("Actually, ")) / len(book)
        assert 0.15 < distance < 0.85


def test_a_mark_in_an_argument_stays_text() -> None:
    assert nolima._filled("{1} {2} {3} {CHAR}", ["{2}{2}", "{1}"]) == "{2}{2} {1} {3} {CHAR}"
