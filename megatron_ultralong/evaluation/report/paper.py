"""The paper's figures, and whether ours can stand beside them.

All figures are of arXiv 2504.06214, of 8B models. What it does not state is noted at every
comparison: which lengths its means take, its prompts, its numbers of samples.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence

from megatron_ultralong.evaluation.local.infinitebench import TASKS as INFINITEBENCH_TASKS
from megatron_ultralong.evaluation.local.lv_eval import DATA_SETS, LEVELS
from megatron_ultralong.evaluation.report.measurement import Measurement
from megatron_ultralong.evaluation.report.table import Cell, ReportTable, words
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.evaluation.ruler.parameters import TASKS as RULER_TASKS

PAPER = "arXiv 2504.06214"
NUM_PARAMETERS = 8.03e9
"""Of Llama 3.1 8B, which all models in the paper's tables have the shape of."""
_MILLION = 2**20
_OF_OTHER_BENCHMARKS = (
    "The paper's figure is not shown: it is one mean of MMLU, MMLU-Pro, MATH, GSM-8K and "
    "HumanEval, and no figure of a single one is known."
)


@dataclasses.dataclass(frozen=True)
class _Comparable:
    """The part of a measurement that is compared with the paper's figure."""

    figure: float | None
    what: str
    against: Sequence[str] = ()
    """Why it cannot be compared."""


@dataclasses.dataclass(frozen=True)
class _Published:
    """The paper's figures of one benchmark."""

    what: str
    figures: tuple[tuple[str, float], ...]
    """Model and figure."""
    comparable: Callable[[Measurement], _Comparable]
    not_known: tuple[str, ...]
    """What the comparison has to take on trust."""


_MAIN = ("Llama-3.1-8B-Instruct", "Gradient-1048k", "ProLong-512k", "UltraLong-1M", "UltraLong-2M",
         "UltraLong-4M")  # fmt: skip
_ABLATIONS = tuple(
    f"ablation at 1M: {name}" for name in ("full recipe", "no separator", "NTK-aware, not YaRN")
)


def paper_table(measurements: Sequence[Measurement]) -> ReportTable | None:
    """The paper's figures beside ours, with reasons; None: the paper has none of this benchmark.

    Where no figure of this project can be compared, a note says why, and the table has no lines.
    """
    kind = measurements[0].result.kind.name
    if kind == "choices":
        return _titled([], "short-context skill", _OF_OTHER_BENCHMARKS)
    published = _PUBLISHED.get(kind)
    if published is None:
        return None
    sizes = [_size_problem(one) for one in measurements]
    if all(sizes):
        reasons = "; ".join(
            f"{one.label} {size}" for one, size in zip(measurements, sizes, strict=True)
        )
        note = f"The paper's figures are for 8B models and are not shown: {reasons}."
        return _titled([], published.what, note)
    rows = [words(model, f"{figure:g}", "paper", "") for model, figure in published.figures]
    for one, size in zip(measurements, sizes, strict=True):
        if size:
            rows.append(words(one.label, "", "this project", f"no: it {size}"))
            continue
        compared = published.comparable(one)
        figure = "–" if compared.figure is None else f"{compared.figure:.2f}"  # noqa: RUF001
        verdict = (
            f"no: {'; '.join(compared.against)}" if compared.against else "yes, as far as is known"
        )
        rows.append(words(one.label, figure, "this project", f"{verdict}; {compared.what}"))
    return _titled(
        rows,
        f"{published.what}, 8B models",
        f"Unknown about the paper's figures: {'; '.join(published.not_known)}.",
    )


def _titled(rows: Sequence[tuple[Cell, ...]], what: str, note: str = "") -> ReportTable:
    return ReportTable(
        header=("model", "figure", "of", "whether it can be compared"),
        rows=tuple(rows),
        figures=(1, 2),
        title=f"Comparison with the paper ({PAPER}): {what}",
        note=note,
    )


def _size_problem(measurement: Measurement) -> str:
    """Why a model does not have the paper's size; empty: it has."""
    model = measurement.result.model
    if model is None:
        return "does not state the size of its model"
    if abs(model.num_parameters / NUM_PARAMETERS - 1) > 0.02:
        return f"has {model.num_parameters:,} parameters"
    return ""


def _ruler(measurement: Measurement) -> _Comparable:
    result = measurement.result
    lengths = [c for c in result.columns if c.isdecimal() and int(c) < _MILLION]
    shown = ", ".join(f"{int(length):,}" for length in lengths)
    means = [mean for length in lengths if (mean := result.mean(length)) is not None]
    against = _missing(result, RULER_TASKS, "tasks")
    if result.config.get("ruler_release") != "860f2bd":
        against.append("other prompts than the paper's (see --ruler-release)")
    if not lengths:
        against.append("no length below 1M")
    mean = sum(means) / len(means) if means else None
    return _Comparable(mean, f"mean over {shown or 'no length'} tokens", against)


def _infinitebench(measurement: Measurement) -> _Comparable:
    result = measurement.result
    limits = ", ".join(f"{int(column):,}" for column in result.columns if column.isdecimal())
    against = _missing(result, INFINITEBENCH_TASKS, "tasks") + _first_only(measurement)
    return _Comparable(result.mean(), f"mean of the tasks, prompts cut at {limits} tokens", against)


def _lv_eval(measurement: Measurement) -> _Comparable:
    result = measurement.result
    against = _missing(result, DATA_SETS, "sets") + _first_only(measurement)
    if missing := [level for level in LEVELS if level not in result.columns]:
        against.append(f"without the levels {', '.join(missing)}")
    return _Comparable(result.mean(), f"mean over the levels {', '.join(result.columns)}", against)


def _retrieval(measurement: Measurement) -> _Comparable:
    result = measurement.result
    return _Comparable(
        result.retrieved(result.lengths),
        f"over lengths of {result.lengths[0]:,} to {result.lengths[-1]:,} and all depths",
    )


def _missing(result: Result, known: Collection[str], what: str) -> list[str]:
    missing = [task for task in known if task not in result.rows]
    if not missing:
        return []
    return [f"{len(result.rows)} of {len(known)} {what}, without {', '.join(missing)}"]


def _first_only(measurement: Measurement) -> list[str]:
    number = measurement.result.config.get("num_samples")
    return [f"only the first {number} questions of every file"] if number else []


_PUBLISHED: dict[str, _Published] = {
    "ruler": _Published(
        "RULER below 1M",
        (
            *zip(_MAIN, (61.3, 77.8, 71.2, 79.1, 78.2, 78.0), strict=True),
            *zip(_ABLATIONS, (80.17, 79.15, 76.62), strict=True),
            ("ablation: two steps, 512K then 1M", 77.52),
        ),
        _ruler,
        ("the lengths under 1M that its mean takes", "its prompts and numbers of samples"),
    ),
    "infinitebench": _Published(
        "InfiniteBench",
        (
            *zip(_MAIN, (24.66, 28.60, 23.54, 32.14, 32.49, 30.38), strict=True),
            *zip(_ABLATIONS, (26.25, 22.75, 20.18), strict=True),
        ),
        _infinitebench,
        ("the tasks that its mean takes", "its prompts and where it cuts them"),
    ),
    "lv_eval": _Published(
        "LV-Eval below 256K",
        tuple(zip(_ABLATIONS, (26.40, 24.85, 21.24), strict=True)),
        _lv_eval,
        ("whether its mean takes the level 256k", "where it cuts prompts"),
    ),
    **{
        kind: _Published(
            "needle retrieval, per cent at every length and depth",
            tuple((model, 100.0) for model in _MAIN[3:]),
            _retrieval,
            ("its prompts", "its lengths and depths"),
        )
        for kind in ("passkey", "needle")
    },
}
