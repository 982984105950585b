"""Loss by position: the figures, and the file they are kept in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.config import from_dict
from megatron_ultralong.errors import InputError
from megatron_ultralong.evaluation.config import LossConfig
from megatron_ultralong.evaluation.model_record import ModelRecord, model_record
from megatron_ultralong.evaluation.result_file import read_json, write_json

_KIND = "position_loss"


@dataclasses.dataclass(frozen=True)
class PositionBin:
    """Predictions made at positions ``start <= i < stop``."""

    start: int
    stop: int
    num_predictions: int
    """Those that count, over all rows."""
    loss: float | None
    """Mean in nats per token; None where no prediction counts."""
    standard_error: float | None
    """Of the mean, from the spread between rows; None for a single row."""
    accuracy: float | None
    """Share of predictions whose argmax is right."""

    @property
    def perplexity(self) -> float | None:
        """``exp(loss)``."""
        return None if self.loss is None else math.exp(self.loss)


@dataclasses.dataclass(frozen=True)
class CheckpointLoss:
    """Loss of one checkpoint by position."""

    name: str
    max_positions: int
    """Positions it was trained for."""
    bins: tuple[PositionBin, ...]
    model: ModelRecord | None = None
    """None: measured before results stated it."""

    def mean_loss(self, start: int = 0, stop: int | None = None) -> float | None:
        """Mean over all predictions of the bins that lie within ``start`` to ``stop``."""
        inside = [
            (part.num_predictions, part.loss)
            for part in self.bins
            if start <= part.start and (stop is None or part.stop <= stop) and part.loss is not None
        ]
        total = sum(count for count, _ in inside)
        return sum(count * loss for count, loss in inside) / total if total else None


@dataclasses.dataclass(frozen=True)
class LossResult:
    """Loss by position of one or more checkpoints on the same rows."""

    config: LossConfig
    seq_length: int
    num_rows: int
    checkpoints: tuple[CheckpointLoss, ...]
    date: str
    versions: dict[str, str]
    material: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What the rows are: their manifest by its SHA-256."""

    @property
    def edges(self) -> tuple[int, ...]:
        """Edges of the bins, the first 0 and the last ``seq_length``."""
        return (0, *(part.stop for part in self.checkpoints[0].bins))

    def save(self, path: Path) -> None:
        """Write as JSON, with the perplexity beside every loss."""
        values = dataclasses.asdict(self)
        for checkpoint, entry in zip(self.checkpoints, values["checkpoints"], strict=True):
            for part, bin_entry in zip(checkpoint.bins, entry["bins"], strict=True):
                bin_entry["perplexity"] = part.perplexity
        write_json(path, _KIND, values)

    @classmethod
    def load(cls, path: str | Path) -> LossResult:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is absent, damaged or of another kind.
        """
        values = read_json(path, _KIND)
        try:
            values["config"] = from_dict(LossConfig, values["config"], f"{path}: config")
            values["checkpoints"] = tuple(map(_checkpoint, values["checkpoints"]))
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error!r}): evaluate again") from error


def _checkpoint(values: dict[str, Any]) -> CheckpointLoss:
    for entry in values["bins"]:
        del entry["perplexity"]
    bins = tuple(PositionBin(**entry) for entry in values["bins"])
    model = model_record(values.get("model"))
    return CheckpointLoss(values["name"], values["max_positions"], bins, model)
