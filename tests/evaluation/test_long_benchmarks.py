"""MRCR, GraphWalks, NoLiMa, LongBench v2: scores by hand, and tiny data in upstream's columns."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken, Tokenizer

from megatron_ultralong.evaluation.local import (
    conversation,
    graph_prompt,
    graphwalks,
    longbench_v2,
    mrcr,
    nolima,
    ruler2,
)
from megatron_ultralong.evaluation.local.graphwalks import evaluate_graphwalks, graphwalks_score
from megatron_ultralong.evaluation.local.longbench_v2 import (
    answer_letter,
    evaluate_longbench_v2,
    longbench_v2_score,
)
from megatron_ultralong.evaluation.local.mrcr import evaluate_mrcr, mrcr_score
from megatron_ultralong.evaluation.local.nolima import evaluate_nolima
from megatron_ultralong.evaluation.local.nolima_placement import Book
from megatron_ultralong.evaluation.local.options import (
    RULER2_TASKS,
    GraphWalksConfig,
    LongBenchV2Config,
    MrcrConfig,
    NoLiMaConfig,
    Ruler2Config,
)
from megatron_ultralong.evaluation.local.ruler2 import evaluate_ruler2
from megatron_ultralong.evaluation.models.hugging_face import HuggingFaceGenerator
from megatron_ultralong.evaluation.models.opening import Subject, model_facts
from megatron_ultralong.evaluation.options import CostConfig
from megatron_ultralong.evaluation.results.file import read_result
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError
from tests.evaluation.test_benchmark import Mortal
from tests.models import write_llama

COST = CostConfig(estimated_tflops=0.01)
SEPARATORS = "\u2028 \u2029 \x85"
"""Ends of lines to :meth:`str.splitlines`, and to nobody else."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose tokenizer has the turns of Llama 3."""
    folder = tmp_path_factory.mktemp("long") / "tiny"
    write_llama(folder, num_hidden_layers=1, max_position_embeddings=4096)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    names = ["begin_of_text", "start_header_id", "end_header_id", "eot_id"]
    taken = own.get_vocab_size()
    own.add_special_tokens([AddedToken(f"<|{name}|>", special=True) for name in names])
    assert taken + len(names) <= 320
    own.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def subject(model: Path) -> Subject:
    generator = HuggingFaceGenerator(model, name="tiny")
    return Subject(generator, model_facts(f"tiny={model}", "fp32"), PromptTokenizer(model), COST)


def asked(subject: Subject) -> tuple[Subject, list[str]]:
    """The same model, and the texts of all prompts that it is asked from now on."""
    mortal = Mortal(subject.model)
    own = Tokenizer.from_file(str(subject.tokenizer.folder / "tokenizer.json"))
    texts: list[str] = []
    generate, mortal.rooms = mortal.generate, []  # type: ignore[attr-defined]

    def noting(prompts: Any, **options: Any) -> list[list[int]]:
        mortal.rooms.append(options["max_new_tokens"])  # type: ignore[attr-defined]
        texts.extend(own.decode(list(ids), skip_special_tokens=False) for ids in prompts)
        return generate(prompts, **options)

    mortal.generate = noting  # type: ignore[method-assign]
    return dataclasses.replace(subject, model=mortal), texts


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


# MRCR


def mrcr_row(needles: int, words: int, prefix: str = "aY0o", answer: str = "") -> dict[str, Any]:
    messages = [
        {"role": "user", "content": "Write a poem about tapirs"},
        {"role": "assistant", "content": f"tapir {SEPARATORS} " * words},
        {"role": "user", "content": f"Prepend {prefix} to the 2nd (1 indexed) poem about tapirs."},
    ]
    return {
        "prompt": json.dumps(messages),
        "answer": prefix + (answer or "A tapir."),
        "random_string_to_prepend": prefix,
        "n_needles": needles,
        "desired_msg_index": 1,
        "total_messages": 3,
        "n_chars": 10,
        "date_added": "12-05-2025",
    }


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
    assert "1 questions are longer than 4,096 tokens, and left out" in result.notes
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
    assert "MRCR of tiny" in capsys.readouterr().out
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


def test_upstreams_bins_are_closed_above_and_the_first_one_below() -> None:
    sizes = (4095, 4096, 4097, 8192, 8193, 2**20, 2**20 + 1)
    found = [conversation.bin_of(size, 4096) for size in sizes]
    assert found == [4096, 8192, 8192, 8192, 16384, 2**20, 2**21]


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


# GraphWalks


@pytest.mark.parametrize(
    ("prediction", "truth", "score"),
    [
        ("Final Answer: [a, b]", ["a", "b"], 1.0),
        ("so\nFinal Answer:[b,a,]", ["a", "b"], 1.0),
        ("Final Answer: [a]", ["a", "b"], 2 / 3),
        ("Final Answer: [a, a, c]", ["a", "b"], 0.5),
        ("**Final Answer: [a, b]**", ["a", "b"], 1.0),
        ("Final Answer: [[a, b]]", ["a", "b"], 1.0),
        ("Final Answer: [a, b]\n", ["a", "b"], 0.0),  # the very last line is empty
        ("Final Answer: [a, b]\x85", ["a", "b"], 1.0),
        ("Final Answer: a, b", ["a", "b"], 0.0),
        ("Final answer: [a, b]", ["a", "b"], 0.0),
        ("Final Answer: [c]", ["a"], 0.0),
        ("Final Answer: []", [], 1.0),
        ("Final Answer: [a]", [], 0.0),
        ("Final Answer: []", ["a"], 0.0),
        ("", [], 0.0),
    ],
)
def test_graphwalks_score_is_f1_of_the_last_lines_list(
    prediction: str, truth: list[str], score: float
) -> None:
    assert graphwalks_score(prediction, truth) == pytest.approx(score)


def edges_of(text: str) -> list[tuple[str, str]]:
    graph = text.split("Here is the graph to operate on:\n")[1]
    return re.findall(r"^(\w{10}) -> (\w{10})$", graph, re.MULTILINE)


@pytest.mark.parametrize("task", ["bfs", "parents"])
def test_the_answers_of_generated_graphs_follow_from_their_prompts(task: str) -> None:
    sizes, depths = set(), set()
    for index in range(60):
        graph = graph_prompt.random_graph(task, f"1/{index}", 4 + index)
        text = graph_prompt.graph_text(graph)
        edges = edges_of(text)
        assert len(edges) == len(set(edges)) == 3 * (4 + index)
        assert all(start != end for start, end in edges)
        if task == "parents":
            (node,) = re.findall(r"Find the parents of node (\w{10})\.", text)
            wanted = {start for start, end in edges if end == node}
        else:
            ((node, depth),) = re.findall(
                r"BFS from node (\w{10}) and return only the nodes at exactly depth (\d)", text
            )
            depths.add(depth)
            distance, queue = {node: 0}, [node]
            for start in queue:
                for end in (end for one, end in edges if one == start):
                    if end not in distance:
                        distance[end] = distance[start] + 1
                        queue.append(end)
            wanted = {end for end, steps in distance.items() if steps == int(depth)}
        assert {graph_prompt.node_name(k) for k in graph.answer} == wanted
        sizes.add(len(wanted))
    assert len(sizes) > 3
    assert task == "parents" or depths == {"1", "2", "3"}
    assert graph_prompt.node_name(0) == "cfcd208495"


def test_generated_graphs_fill_their_length(subject, tmp_path) -> None:
    config = GraphWalksConfig(
        lengths=(3100, 2800), num_samples=2, max_new_tokens=8, output=str(tmp_path / "out")
    )
    own, texts = asked(subject)
    result = evaluate_graphwalks(config, own)
    assert result.rows == ("bfs", "parents")
    assert result.columns == ("2800", "3100")
    lines = (tmp_path / "out" / "samples.jsonl").read_text("utf-8").split("\n")[:-1]
    for entry in map(json.loads, lines):
        room = int(entry["column"]) - 8
        assert room - 150 < entry["num_prompt_tokens"] <= room
    assert len(set(texts)) == len(texts) == 8
    again, same = asked(subject)
    evaluate_graphwalks(dataclasses.replace(config, output="", micro_batch_size=2), again)
    assert same == texts
    other, others = asked(subject)
    evaluate_graphwalks(dataclasses.replace(config, output="", seed=2), other)
    assert not set(others) & set(texts)
    for changes, message in (
        ({"lengths": (128,)}, "graphwalks' bfs: 120 tokens are too few"),
        ({"lengths": ()}, "lengths must be different token counts"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"tasks": ("dfs",)}, "task 'dfs' is not known"),
        ({"lengths": (8192,)}, r"length 8192 \(8192 tokens\) is beyond the 4096 positions"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_graphwalks(dataclasses.replace(config, output="", **changes), subject)


def test_graphwalks_of_a_file_has_room_for_its_longest_answer(subject, tmp_path) -> None:
    nodes = [graph_prompt.node_name(k) for k in range(8)]
    rows = [
        {"prompt": "a -> b\n", "answer_nodes": nodes[:1], "problem_type": "bfs"},
        {"prompt": "a -> b\n" * 9, "answer_nodes": nodes, "problem_type": "parents"},
        {"prompt": "a -> b\n" * 9000, "answer_nodes": [], "problem_type": "parents"},
    ]
    file = tmp_path / "graphwalks_128k_and_shorter.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    config = GraphWalksConfig(data=str(tmp_path), max_new_tokens=63)
    own, texts = asked(subject)
    result = evaluate_graphwalks(config, own)
    assert [(cell.row, cell.num_samples) for cell in result.cells] == [("bfs", 1), ("parents", 1)]
    assert "user<|end_header_id|>\n\na -> b<|eot_id|>" in texts[0]  # trimmed
    true = "Final Answer: [" + ", ".join(nodes) + "]"
    assert own.model.rooms == [63, subject.tokenizer.encode(true).size + 32]
    assert "1 questions are longer" in result.notes[2]


# RULER v2


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


# NoLiMa


NEEDLES = [
    {
        "id": "0401",
        "reasoning_type": "world_knowledge",
        "system_prompt": "",
        "needle": "Actually, {CHAR} lives next to {1}.",
        "questions": {
            "onehop": "Which character has been to {2}?",
            "twohop": "Which character has been to {3}?",
        },
        "character_set": ["Yuki", "Stuart", "Veronica"],
        "tests": {
            "T1": {"input_args": ["the Semper Opera House", "Dresden", "Saxony"]},
            "T2": {"input_args": ["the Kiasma museum", "Helsinki", "Uusimaa"]},
        },
    }
]


def nolima_data(folder: Path, needles: Any = None, name: str = "needle_set") -> Path:
    (folder / "needlesets").mkdir(parents=True, exist_ok=True)
    (folder / "needlesets" / f"{name}.json").write_text(json.dumps(needles or NEEDLES))
    books = folder / "haystack" / "rand_shuffle"
    books.mkdir(parents=True, exist_ok=True)
    for number in (1, 2, 10):
        lines = (f"Line {k} of {number} {SEPARATORS} sails." for k in range(400))
        (books / f"rand_book_{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


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


# LongBench v2


def question(**changes: Any) -> dict[str, Any]:
    row = {"_id": "1", "domain": "d", "sub_domain": "s", "difficulty": "easy", "length": "short"}
    row |= {"question": " Which? ", "answer": "B", "context": f" A text {SEPARATORS} here. \n"}
    return row | {f"choice_{letter}": f" choice {letter} " for letter in "ABCD"} | changes


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
    assert "<text>\nWhich? and choice A\n</text>" in texts[2]  # upstream fills them in there, too
    assert texts[1].count("<|start_header_id|>") == 2
    assert "Please read the following text" in texts[1]
    assert 'is (insert answer here)".<|eot_id|>' in texts[1]
    assert "lose their middle" in result.notes[1]
    parquet = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    config = LongBenchV2Config(data=str(parquet), max_new_tokens=4, num_samples=1)
    assert [cell.num_samples for cell in evaluate_longbench_v2(config, subject).cells] == [1, 1, 1]


# What all have in common


def test_messages_as_text_end_where_the_assistant_begins(subject) -> None:
    tokenizer = subject.tokenizer
    messages = (("system", "S"), ("user", "one " * 300), ("assistant", "A"), ("user", "two " * 300))
    ids, was_cut = conversation.prompt_ids(tokenizer, "base", messages)
    assert not was_cut
    assert tokenizer.decode(ids) == (
        f"System: S\n\nUser: {'one ' * 300}\n\nAssistant: A\n\nUser: {'two ' * 300}\n\nAssistant:"
    )
    short, was_cut = conversation.prompt_ids(tokenizer, "base", messages, ids.size - 200)
    assert was_cut
    assert ids.size - 202 <= short.size <= ids.size - 200
    text = tokenizer.decode(short)
    assert text.startswith(f"System: S\n\nUser: {'one ' * 300}\n\nAssistant: A\n\nUser: two two")
    assert text.endswith("two \n\nAssistant:")
    with pytest.raises(InputError, match="a prompt of 500 tokens has no room"):
        conversation.prompt_ids(tokenizer, "base", messages, 500)


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

    def rows(rows_of: Any, scorer: Any) -> Callable[[Path], None]:
        def read(file: Path) -> None:
            for row in rows_of({file: "hash"}):
                scorer(row.task)("an answer", row.references)
                conversation.prompt_ids(subject.tokenizer, "chat", row.messages)
                subject.tokenizer.encode(row.answer)

        return read

    def longbench(file: Path) -> None:
        for row in conversation.read_rows(file, longbench_v2.KEYS):
            longbench_v2_score("an answer", longbench_v2.checked(row)["answer"])
            messages = (("user", longbench_v2.prompt_text(row)),)
            conversation.prompt_ids(subject.tokenizer, "chat", messages)

    def needles(file: Path) -> None:
        file.write_text(f"[{file.read_text()}]")
        book = Book("book", "A line.\n" * 100, subject.tokenizer)
        for test in nolima.read_tests(file):
            for place in nolima.placements(test, [book], 20, 2):
                conversation.prompt_ids(subject.tokenizer, "chat", place.messages())
                nolima.nolima_score("contains", "an answer", place.answers)

    (folder / "qa_hard").mkdir()
    two = {"question": "Q", "expected_answer": ["x"], "length": 9}
    nested = NEEDLES[0] | {
        "distractors": {"onehop": "D", "twohop": "D"},
        "task_template": "{question}",
    }
    return {
        "mrcr.jsonl": (MRCR[1], rows(mrcr.rows_of, lambda task: mrcr_score)),
        "graphwalks.jsonl": (GRAPH[1], rows(graphwalks.rows_of, lambda task: graphwalks_score)),
        "qa_hard/test.jsonl": (two, rows(ruler2.rows_of, ruler2.scorer)),
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
    with pytest.raises(InputError, match=r"is a JSON array, where JSON lines are read: .*jq -c"):
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
    generator, tokenizer = HuggingFaceGenerator(tmp_path, name="plain"), PromptTokenizer(tmp_path)
    plain = Subject(generator, model_facts(str(tmp_path), "fp32"), tokenizer, COST)
    with pytest.raises(InputError, match=r"does not have: use --prompt-template base"):
        evaluate_graphwalks(GraphWalksConfig(lengths=(64,)), plain)
