"""Results of checkpoints that were never run, in the project's own types and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.config import LossConfig, NeedleConfig, PasskeyConfig
from megatron_ultralong.evaluation.loss_result import CheckpointLoss, LossResult, PositionBin
from megatron_ultralong.evaluation.model_record import ModelRecord
from megatron_ultralong.evaluation.passkey_result import NeedleResult, PasskeyCell, PasskeyResult
from megatron_ultralong.evaluation.task_result import TaskCell, TaskResult

DATE = "2026-01-31T12:00:00+00:00"
VERSIONS = {"megatron-ultralong": "0.1.0", "torch": "2.13.0"}
EDGES = (0, 256, 512, 1024, 2048)
BEFORE, AFTER = (3.2, 3.0, 4.5, 6.0), (3.24, 3.04, 3.1, 3.14)
LLAMA_8B = 8_030_261_248


def record(name: str, num_parameters: int = LLAMA_8B, folder: str = "") -> ModelRecord:
    weights = f"{name}-{folder}".encode().hex()[:16]
    return ModelRecord(folder or f"runs/{name}", "megatron", "bf16", weights, num_parameters)


def checkpoint_loss(name: str, max_positions: int, losses: Sequence[float | None]):
    bins = zip(EDGES[:-1], EDGES[1:], losses, strict=True)
    return CheckpointLoss(
        name,
        max_positions,
        tuple(PositionBin(a, b, b - a, x, 0.01, 0.4) for a, b, x in bins),
        record(name),
    )


def loss_result(before=BEFORE, after=AFTER, data_path: str = "rows") -> LossResult:
    both = (checkpoint_loss("before", 512, before), checkpoint_loss("after", 2048, after))
    config = LossConfig(data_path=data_path)
    return LossResult(config, 2048, 8, both, DATE, VERSIONS, {"manifest.json": f"of {data_path}"})


def passkey_result(
    name: str, max_positions: int, retrieved: Mapping[int, int], model=None, **flags: Any
) -> PasskeyResult:
    """``retrieved`` of ten prompts at each of two depths."""
    config = PasskeyConfig(lengths=tuple(retrieved), depths=(0.0, 50.0), **flags)
    return PasskeyResult(
        config, name, max_positions, _cells(retrieved), DATE, VERSIONS, model or record(name)
    )


def needle_result(name: str, max_positions: int, retrieved: Mapping[int, int]) -> NeedleResult:
    config = NeedleConfig(lengths=tuple(retrieved), depths=(0.0, 50.0))
    return NeedleResult(
        config, name, max_positions, _cells(retrieved), DATE, VERSIONS, record(name)
    )


def _cells(retrieved: Mapping[int, int]) -> tuple[PasskeyCell, ...]:
    return tuple(
        PasskeyCell(length, depth, 10, count, 0.5)
        for length, count in retrieved.items()
        for depth in (0.0, 50.0)
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
) -> TaskResult:
    """``scores`` by task and column."""
    cells = tuple(
        TaskCell(task, column, num_samples, score, 1000.0, num_truncated)
        for (task, column), score in scores.items()
    )
    tasks = list(dict.fromkeys(task for task, _ in scores))
    return TaskResult(
        kind=kind,
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


def saved(result: Any, path: Path) -> Path:
    """``result`` in a file, through its own ``save``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result.save(path)
    return path
