"""What the harness returns, as a result of this project and as its own files."""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.results.cell import LOWER_IS_BETTER, ScoreCell
from megatron_ultralong.program.aside import write_aside
from megatron_ultralong.program.optional import optional_package

OF_HUNDRED = frozenset({"bleu", "chrf", "ter"})
"""Metrics of the harness that are per cent already; the others are shares, or perplexities."""


def rows(results: Mapping[str, Any]) -> list[str]:
    """Tasks and groups that a table shows: of a group that has a score of its own that alone."""
    groups = {
        name: members
        for name, members in results.get("group_subtasks", {}).items()
        if _scores(results["results"].get(name, {}))
    }
    inside: set[str] = set()
    for members in groups.values():
        inside.update(members)
    found = [name for name, values in results["results"].items() if _scores(values)]
    return [name for name in found if name not in inside]


def _scores(values: Mapping[str, Any]) -> dict[str, float]:
    """Metrics with their filters and scores: ``{"exact_match,strict-match": 50.0}``.

    Shares become per cent; perplexities and what is per cent already stay as they are. What is none
    of these (a length, a difference, no number) stays in the harness's own files alone.
    """
    found = {}
    for name, value in values.items():
        metric = name.partition(",")[0]
        if "," not in name or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        is_lower = name.removesuffix(",none") in LOWER_IS_BETTER
        score = float(value) * (1 if is_lower or metric in OF_HUNDRED else 100)
        if 0 <= score <= (1e300 if is_lower else 100):
            found[name] = score
    return found


def cells(results: Mapping[str, Any]) -> Iterator[ScoreCell]:
    """The cells of a result, from what the harness returns."""
    for row in rows(results):
        values = results["results"][row]
        for name, score in _scores(values).items():
            metric, _, filtered = name.partition(",")
            column = metric if filtered == "none" else f"{metric} ({filtered})"
            error = values.get(f"{metric}_stderr,{filtered}")
            if isinstance(error, (int, float)):
                error = float(error) * (score / values[name] if values[name] else 100)
            known = isinstance(error, float) and 0 <= error < 1e300
            count = int(values.get("sample_len") or values["sample_count"][name])
            yield ScoreCell(row, column, count, score, error if known else None)


def condition(results: Mapping[str, Any], name: str) -> str:
    """``5-shot, version 3``."""
    shots = results["n-shot"].get(name)
    version = results["versions"].get(name)
    parts = [f"{shots}-shot" if shots is not None else "", f"version {version}" if version else ""]
    return ", ".join(filter(None, parts))


def write_files(folder: Path, results: Mapping[str, Any]) -> None:
    """The harness's own files: ``results.json``, and the samples of every task."""
    plain = optional_package("lm_eval.utils", "evaluate harness").handle_non_serializable
    folder.mkdir(exist_ok=True)
    rest = {**results}
    samples = rest.pop("samples", None) or {}
    write: Callable[..., str] = functools.partial(json.dumps, default=plain, ensure_ascii=False)
    for task, entries in samples.items():
        name = re.sub(r"[^\w.-]", "_", task)
        write_aside(folder / f"samples_{name}.jsonl", "".join(f"{write(e)}\n" for e in entries))
    write_aside(folder / "results.json", write(rest, indent=2))
