"""GraphWalks: scores by hand, generated graphs, and tiny files."""

from __future__ import annotations

import dataclasses
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ultralong.evaluation.local import graphwalks
from megatron_ultralong.evaluation.local.graphwalks import evaluate_graphwalks, graphwalks_score
from megatron_ultralong.evaluation.local.options import GraphWalksConfig
from megatron_ultralong.program.errors import InputError
from tests.evaluation.long.data import asked


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
        graph = graphwalks.random_graph(task, f"1/{index}", 4 + index)
        text = graphwalks.graph_text(graph)
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
        assert {graphwalks.node_name(k) for k in graph.answer} == wanted
        sizes.add(len(wanted))
    assert len(sizes) > 3
    assert task == "parents" or depths == {"1", "2", "3"}
    assert graphwalks.node_name(0) == "cfcd208495"


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
    nodes = [graphwalks.node_name(k) for k in range(8)]
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
    assert "left out, longer than" in result.notes[2]
