"""What the harness returns, as a result of this project and as its own files."""

import functools
import hashlib
import json
import numbers
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.results.result import LOWER_IS_BETTER, ScoreCell
from megatron_ultralong.program.aside import write_aside
from megatron_ultralong.program.optional import optional_package

SHARES = re.compile(
    r"acc|acc_(norm|bytes|all|mutual_info)|exact_match|em|f1|pass(@|_at_)\d+|math_verify"
    r"|(prompt|inst)_level_(strict|loose)_acc|(bleu|rouge[12L])_acc"
)
"""Metrics of the harness that are means of 0 to 1 over samples: a result has them in per cent."""
OF_HUNDRED = frozenset({"bleu", "chrf", "chrf++"})
"""Those that are of 100 already."""
_AMBIGUOUS = OF_HUNDRED | {"ter", "em", "f1"}
"""Names that tasks also give to figures of their own: taken where the task file's ``metric_list``
names them, and those of sacrebleu where their aggregation is the harness's."""


def rows(results: Mapping[str, Any]) -> list[str]:
    """Tasks and groups that a table shows: of a group that has a score of its own that alone."""
    groups = results.get("group_subtasks", {})
    inside = {member for name in groups if _scores(results, name) for member in groups[name]}
    return [name for name in results["results"] if name not in inside and _scores(results, name)]


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    """Everything that the harness has of a task but its errors and counts."""
    return {
        name: float(value)
        for name, value in values.items()
        if "," in name
        and not name.partition(",")[0].endswith("_stderr")
        and isinstance(value, numbers.Real)  # of NumPy, too
    }


def _scores(results: Mapping[str, Any], row: str) -> dict[str, float]:
    """Scores of a task or group by metric and filter: ``{"exact_match,strict-match": 50.0}``.

    Shares become per cent; perplexities and what is of 100 already stay as they are. What is none
    of these, or better in the other direction, is left to the harness's own files.
    """
    found = {}
    higher_is_better = results.get("higher_is_better", {}).get(row, {})
    for name, value in _figures(results["results"].get(row, {})).items():
        metric = name.partition(",")[0]
        is_lower = name.removesuffix(",none") in LOWER_IS_BETTER
        is_share = SHARES.fullmatch(metric) is not None
        is_known = is_lower or is_share or metric in OF_HUNDRED
        is_possible = 0 <= value <= (1e300 if is_lower else 1 if is_share else 100)
        is_so = higher_is_better.get(metric, not is_lower) is not is_lower
        is_its = metric not in _AMBIGUOUS or _is_listed(results, row, metric)
        if is_known and is_possible and is_so and is_its:
            found[name] = value * (100 if is_share else 1)
    return found


def _is_listed(results: Mapping[str, Any], row: str, metric: str) -> bool:
    """Whether the file of the task, or of each task of the group, lists the metric as its own."""
    if members := results.get("group_subtasks", {}).get(row):
        return all(_is_listed(results, member, metric) for member in members)
    listed = results.get("configs", {}).get(row, {}).get("metric_list") or ()
    found = next((one for one in listed if one.get("metric") == metric), None)
    if found is None:
        return False
    return metric in ("em", "f1") or found.get("aggregation", metric) == metric


def left_out(results: Mapping[str, Any]) -> list[str]:
    """Metrics, by name and task, of which a result has no cell though its table has the row."""
    shown, groups = rows(results), results.get("group_subtasks", {})
    inside = {member for row in shown for member in _inside(groups, row)}
    found: dict[str, list[str]] = {}
    for row, values in results["results"].items():
        if row not in inside:
            scores = _scores(results, row)
            for name in _figures(values):
                if name not in scores:
                    found.setdefault(name.removesuffix(",none"), []).append(row)
    shown_rows = {name: ", ".join(names[:3]) for name, names in found.items()}
    more = {name: ", ..." * (len(names) > 3) for name, names in found.items()}
    return [f"{name} ({names}{more[name]})" for name, names in shown_rows.items()]


def _inside(groups: Mapping[str, Any], row: str) -> Iterator[str]:
    for member in groups.get(row, ()):
        yield member
        yield from _inside(groups, member)


def cells(results: Mapping[str, Any]) -> Iterator[ScoreCell]:
    """The cells of a result, from what the harness returns."""
    for row in rows(results):
        values = results["results"][row]
        for name, score in _scores(results, row).items():
            metric, _, filtered = name.partition(",")
            column = metric if filtered == "none" else f"{metric} ({filtered})"
            error = values.get(f"{metric}_stderr,{filtered}")
            if isinstance(error, numbers.Real):
                error = float(error) * (100 if SHARES.fullmatch(metric) else 1)
            known = isinstance(error, float) and 0 <= error <= (
                1e300 if column in LOWER_IS_BETTER else 50
            )
            count = int(values.get("sample_len") or values["sample_count"][name])
            yield ScoreCell(row, column, count, score, error if known else None)


def condition(results: Mapping[str, Any], name: str) -> str:
    """``5-shot, version 3``."""
    shots, version = results["n-shot"].get(name), results["versions"].get(name)
    parts = [f"{shots}-shot" if shots is not None else "", f"version {version}" if version else ""]
    return ", ".join(filter(None, parts))


def material(results: Mapping[str, Any], row: str) -> str:
    """Hash of the questions of a task or group and of their answers, whatever their order."""
    samples, groups = results.get("samples") or {}, results.get("group_subtasks", {})
    asked = {
        f"{task} {one['doc_hash']} {one['target_hash']}"
        for task in (row, *_inside(groups, row))
        for one in samples.get(task, ())
    }
    return f"sha256 {hashlib.sha256(' '.join(sorted(asked)).encode()).hexdigest()}" * bool(asked)


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
