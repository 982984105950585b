"""What the harness returns, as cells: which scale and direction a metric has, and what is left out.

No harness is needed: the values are of its form.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from megatron_ultralong.evaluation.harness.results import cells, left_out, material


def returned(task: str, metrics: dict[str, float], listed: dict[str, Any] | None) -> dict[str, Any]:
    """``metrics`` of one task; ``listed`` are those of its file, with their aggregation."""
    entries = [{"metric": k, "aggregation": v} for k, v in (listed or {}).items()]
    return {
        "results": {task: {"sample_len": 10, **{f"{k},none": v for k, v in metrics.items()}}},
        "higher_is_better": {task: dict.fromkeys(metrics, True)},
        "configs": {task: {"metric_list": entries} if listed else {}},
    }


def scores(results: dict[str, Any]) -> dict[str, float | None]:
    return {cell.column: cell.score for cell in cells(results)}


def test_shares_alone_become_per_cent_and_the_rest_is_named() -> None:
    metrics = {"bleu_max": 23.1, "bleu_diff": 0.6, "bleu_acc": 0.5, "acc": 1.0, "mcc": -0.02}
    truthfulqa = returned("truthfulqa_gen", metrics, None)
    assert scores(truthfulqa) == {"bleu_acc": 50.0, "acc": 100.0}
    assert left_out(truthfulqa) == [
        f"{name} (truthfulqa_gen)" for name in ("bleu_max", "bleu_diff", "mcc")
    ]


def test_numbers_of_numpy_are_numbers() -> None:
    """A task's own aggregation returns what it likes."""
    metrics: Any = {"acc": np.float32(0.5), "f1": np.float32(0.5), "count": np.int64(3)}
    found = returned("own", metrics, {"acc": "mean"})
    assert scores(found) == {"acc": 50.0}
    assert left_out(found) == ["f1 (own)", "count (own)"]


def test_the_questions_of_a_task_and_of_a_group_are_stated() -> None:
    def asked(*hashes: str, task: str = "one") -> dict[str, Any]:
        entries = [
            {"doc_hash": one, "target_hash": "t", "filter": f} for f in "ab" for one in hashes
        ]
        return {"samples": {task: entries}, "group_subtasks": {"all": [task], task: []}}

    first = material(asked("x", "y"), "one")
    assert first.startswith("sha256 ")
    assert material(asked("y", "x"), "one") == first == material(asked("x", "y"), "all")
    others = [asked("x"), asked("x", "z"), asked("x", "y", task="two")]
    assert len({first, *(material(one, "all") for one in others)}) == 4
    assert material({"results": {"one": {}}}, "one") == ""  # the harness was told to keep none


def test_a_name_that_tasks_use_otherwise_counts_where_the_task_lists_it() -> None:
    values = {"exact": 12.0, "f1": 0.4, "HasAns_exact": 0.4}
    squad = returned("squadv2", values, None)  # a class in Python; its f1 is in per cent
    assert scores(squad) == {}
    assert len(left_out(squad)) == 3
    assert scores(returned("coqa", {"f1": 0.4}, {"f1": "mean"})) == {"f1": 40.0}
    assert scores(returned("wmt", {"bleu": 31.5}, {"bleu": "bleu"})) == {"bleu": 31.5}
    assert scores(returned("own", {"bleu": 0.3}, {"bleu": "nanmean"})) == {}
    group = returned("drop", {"em": 0.5}, {"em": "mean"})
    group["results"]["two"] = {"sample_len": 20, "em,none": 0.25}
    group["group_subtasks"] = {"two": ["drop"]}
    assert [(cell.row, cell.score) for cell in cells(group)] == [("two", 25.0)]
    assert left_out(group) == []


def test_the_direction_is_that_of_the_harness() -> None:
    brier = returned("a", {"brier_score": 0.18, "acc": 0.5}, None)
    brier["higher_is_better"]["a"] = {"brier_score": False, "acc": True}
    assert scores(brier) == {"brier_score": 0.18, "acc": 50.0}
    brier["higher_is_better"]["a"] = {"brier_score": True, "acc": False}
    assert scores(brier) == {}
    ter = returned("b", {"ter": 120.0}, {"ter": "ter"})
    ter["higher_is_better"]["b"]["ter"] = False
    assert scores(ter) == {"ter": 120.0}


def test_errors_have_the_scale_of_their_scores() -> None:
    results = returned("a", {"acc": 0.0}, None)
    results["results"]["a"]["acc_stderr,none"] = 0.02
    (cell,) = cells(results)
    assert cell.error == 2.0
