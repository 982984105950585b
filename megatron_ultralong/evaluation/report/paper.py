"""The paper's figures, and whether ours can stand beside them.

All figures are of arXiv 2504.06214, of 8B models, in ``paper.json``. What it does not state is
noted at every comparison: which lengths its means take, its prompts, its numbers of samples.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from megatron_ultralong.evaluation.local.infinitebench import TASKS as INFINITEBENCH_TASKS
from megatron_ultralong.evaluation.local.lv_eval import DATA_SETS, LEVELS
from megatron_ultralong.evaluation.report.measurement import Measurement
from megatron_ultralong.evaluation.report.table import Cell, ReportTable, words
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.evaluation.ruler.parameters import TASKS as RULER_TASKS
from megatron_ultralong.program.errors import counted
from megatron_ultralong.program.json_file import read_json

PAPER = "arXiv 2504.06214"
NUM_PARAMETERS = 8.03e9
"""Of Llama 3.1 8B, which all models in the paper's tables have the shape of."""
_PUBLISHED = read_json(Path(__file__).with_suffix(".json"))
"""By benchmark: what it is, the figures of models, and what a comparison has to take on trust."""
_MILLION = 2**20
_OF_OTHER_BENCHMARKS = (
    "The paper's figure is not shown: it is one mean of MMLU, MMLU-Pro, MATH, GSM-8K and "
    "HumanEval, and no figure of a single one is known."
)


def paper_table(measurements: Sequence[Measurement]) -> ReportTable | None:
    """The paper's figures beside ours, with reasons; None: the paper has none of this benchmark.

    Where no figure of this project can be compared, a note says why, and the table has no lines.
    """
    kind = measurements[0].result.kind.name
    if kind == "choices":
        return _titled([], "short-context skill", _OF_OTHER_BENCHMARKS)
    if kind not in _PUBLISHED:
        return None
    published = _PUBLISHED[kind]
    sizes = [(one, _size_problem(one.result)) for one in measurements]
    if all(size for _, size in sizes):
        reasons = "; ".join(f"{one.label} {size}" for one, size in sizes)
        note = f"The paper's figures are for 8B models and are not shown: {reasons}."
        return _titled([], published["what"], note)
    figures = published["figures"].items()
    rows = [words(model, f"{figure:g}", "paper", "") for model, figure in figures]
    for one, size in sizes:
        if size:
            rows.append(words(one.label, "", "this project", f"no: it {size}"))
            continue
        mean, what, against = _compared(one.result)
        verdict = f"no: {'; '.join(against)}" if against else "yes, as far as is known"
        figure = "–" if mean is None else f"{mean:.2f}"  # noqa: RUF001
        rows.append(words(one.label, figure, "this project", f"{verdict}; {what}"))
    note = f"Unknown about the paper's figures: {published['not_known']}."
    return _titled(rows, f"{published['what']}, 8B models", note)


def _titled(rows: Sequence[tuple[Cell, ...]], what: str, note: str) -> ReportTable:
    return ReportTable(
        header=("model", "figure", "of", "whether it can be compared"),
        rows=tuple(rows),
        figures=(1, 2),
        title=f"Comparison with the paper ({PAPER}): {what}",
        note=note,
    )


def _size_problem(result: Result) -> str:
    """Why a model does not have the paper's size; empty: it has."""
    if result.model is None:
        return "does not state the size of its model"
    if abs(result.model.num_parameters / NUM_PARAMETERS - 1) > 0.02:
        return f"has {result.model.num_parameters:,} parameters"
    return ""


def _compared(result: Result) -> tuple[float | None, str, list[str]]:
    """The figure that is compared with the paper's, of what, and why it cannot be."""
    lengths = [column for column in result.columns if column.isdecimal()]
    if result.kind.rows == "depths":
        first, last = result.lengths[0], result.lengths[-1]
        over = f"over lengths of {first:,} to {last:,} and all depths"
        return result.retrieved(result.lengths), over, []
    if result.kind.name == "ruler":
        lengths = [length for length in lengths if int(length) < _MILLION]
        means = [mean for length in lengths if (mean := result.mean(length)) is not None]
        against = _missing(result, RULER_TASKS, "tasks")
        if result.config.get("ruler_release") != "860f2bd":
            against.append("other prompts than the paper's (see --ruler-release)")
        if not lengths:
            against.append("no length below 1M")
        shown = ", ".join(f"{int(length):,}" for length in lengths) or "no length"
        return sum(means) / len(means) if means else None, f"mean over {shown} tokens", against
    if result.kind.name == "lv_eval":
        known, what = _missing(result, DATA_SETS, "sets"), "mean over the levels "
        what += ", ".join(result.columns)
    else:
        known, what = _missing(result, INFINITEBENCH_TASKS, "tasks"), "mean of the tasks, prompts "
        what += f"cut at {', '.join(f'{int(length):,}' for length in lengths)} tokens"
    if number := result.config.get("num_samples"):
        known.append(f"only the first {counted(number, 'question')} of every file")
    missing = [level for level in LEVELS if level not in result.columns]
    if missing and result.kind.name == "lv_eval":
        known.append(f"without the levels {', '.join(missing)}")
    return result.mean(), what, known


def _missing(result: Result, known: Collection[str], what: str) -> list[str]:
    missing = [task for task in known if task not in result.rows]
    if not missing:
        return []
    return [f"{len(result.rows)} of {len(known)} {what}, without {', '.join(missing)}"]
