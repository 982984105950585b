"""Results of checkpoints that were never run, in the project's own type and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.models.facts import ModelFacts, model_facts
from megatron_ultralong.evaluation.models.language_models import Subject
from megatron_ultralong.evaluation.options import (
    CostConfig,
    LossConfig,
    NeedleConfig,
    PasskeyConfig,
)
from megatron_ultralong.evaluation.results.file import write_results
from megatron_ultralong.evaluation.results.model_record import ModelRecord
from megatron_ultralong.evaluation.results.result import (
    KINDS,
    LOSS,
    Result,
    ScoreCell,
    depth_row,
    plain_values,
    position_row,
)
from megatron_ultralong.model.shape import MODELS

DATE = "2026-01-31T12:00:00+00:00"
VERSIONS = {"megatron-ultralong": "0.1.0", "torch": "2.13.0"}
EDGES = (0, 256, 512, 1024, 2048)
BEFORE, AFTER = (3.2, 3.0, 4.5, 6.0), (3.24, 3.04, 3.1, 3.14)
LLAMA_8B = 8_030_261_248


def record(name: str, num_parameters: int = LLAMA_8B, folder: str = "") -> ModelRecord:
    weights = f"{name}-{folder}".encode().hex()[:16]
    return ModelRecord(folder or f"runs/{name}", "megatron", "bf16", weights, num_parameters)


def subject_of(model: Any, folder: Path | None = None, **limits: float) -> Subject:
    """A model in Hugging Face's format as benchmarks take it; of ``folder`` if results say so."""
    if folder is None:  # its figures are all that matters
        shape = MODELS["llama3.1-8b"]
        facts = ModelFacts(model.name, shape, model.max_positions, record(model.name))
    else:
        facts = model_facts(str(folder), "fp32")
    return Subject(model, facts, None, CostConfig(estimated_tflops=0.01, **limits))


def loss_of(
    name: str, max_positions: int, losses: Sequence[float | None], data_path: str = "rows"
) -> Result:
    bins = zip(EDGES[:-1], EDGES[1:], losses, strict=True)
    return Result(
        kind=KINDS["position_loss"],
        config=plain_values(LossConfig(data_path=data_path)),
        checkpoint=name,
        max_positions=max_positions,
        cells=tuple(_loss_cell(a, b, x) for a, b, x in bins),
        material={"manifest.json": f"of {data_path}"},
        num_packed_rows=8,
        date=DATE,
        versions=VERSIONS,
        model=record(name),
    )


def _loss_cell(start: int, stop: int, loss: float | None) -> ScoreCell:
    found = (0, None) if loss is None else (stop - start, loss, 0.01)
    return ScoreCell(position_row(start, stop), LOSS, *found)


def loss_results(before=BEFORE, after=AFTER, data_path: str = "rows") -> list[Result]:
    return [loss_of("before", 512, before, data_path), loss_of("after", 2048, after, data_path)]


def passkey_result(
    name: str, max_positions: int, retrieved: Mapping[int, int], model=None, **flags: Any
) -> Result:
    """``retrieved`` of ten prompts at each of two depths."""
    config = PasskeyConfig(lengths=tuple(retrieved), depths=(0.0, 50.0), **flags)
    return _retrieval("passkey", config, name, max_positions, retrieved, model)


def needle_result(name: str, max_positions: int, retrieved: Mapping[int, int]) -> Result:
    config = NeedleConfig(lengths=tuple(retrieved), depths=(0.0, 50.0))
    return _retrieval("needle", config, name, max_positions, retrieved)


def _retrieval(
    kind: str, config: Any, name: str, max_positions: int, retrieved: Mapping[int, int], model=None
) -> Result:
    return Result(
        kind=KINDS[kind],
        config=plain_values(config),
        checkpoint=name,
        max_positions=max_positions,
        cells=tuple(
            ScoreCell(depth_row(depth), str(length), 10, 10.0 * count)
            for length, count in retrieved.items()
            for depth in (0.0, 50.0)
        ),
        date=DATE,
        versions=VERSIONS,
        model=model or record(name),
    )


def task_result(
    kind: str,
    name: str,
    max_positions: int,
    scores: Mapping[tuple[str, str], float],
    *,
    num_samples: int = 100,
    num_truncated: int = 0,
    num_parameters: int = LLAMA_8B,
    material: Mapping[str, str] | None = None,
    **flags: Any,
) -> Result:
    """``scores`` by task and column."""
    figures = {"num_prompt_tokens": 1000.0, "num_truncated": num_truncated}
    cells = tuple(
        ScoreCell(task, column, num_samples or 100, score, figures=figures)
        for (task, column), score in scores.items()
    )
    tasks = list(dict.fromkeys(task for task, _ in scores))
    return Result(
        kind=KINDS[kind],
        config={"tasks": tasks, "num_samples": num_samples, "output": f"{name}/{kind}", **flags},
        checkpoint=name,
        max_positions=max_positions,
        cells=cells,
        metrics=dict.fromkeys(tasks, "string_match_all"),
        notes=("prompt template base, seed 42",),
        material=dict(material or {}),
        date=DATE,
        versions=VERSIONS,
        model=record(name, num_parameters),
    )


def saved(results: Result | Sequence[Result], path: Path) -> Path:
    """Results in a file, as the verbs write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_results(path, [results] if isinstance(results, Result) else results)
    return path
