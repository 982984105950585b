"""Passkey retrieval by length and depth: the figures, and the file they are kept in."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

from megatron_ultralong.config import from_dict
from megatron_ultralong.errors import InputError
from megatron_ultralong.evaluation.config import NeedleConfig, PasskeyConfig
from megatron_ultralong.evaluation.model_record import ModelRecord, model_record
from megatron_ultralong.evaluation.result_file import read_json, write_json


@dataclasses.dataclass(frozen=True)
class PasskeyCell:
    """Prompts of one length and depth."""

    length: int
    depth: float
    """Per cent of the text before the needle."""
    num_samples: int
    num_retrieved: int
    """Prompts whose whole answer greedy decoding would write."""
    token_accuracy: float
    """Share of answer tokens that are right, given the ones before them."""

    @property
    def accuracy(self) -> float:
        """Share of prompts retrieved."""
        return self.num_retrieved / self.num_samples


@dataclasses.dataclass(frozen=True)
class PasskeyResult:
    """Passkey retrieval of one checkpoint."""

    kind: ClassVar[str] = "passkey"
    config_class: ClassVar[type[PasskeyConfig] | type[NeedleConfig]] = PasskeyConfig
    title: ClassVar[str] = "Passkey retrieval"
    form: ClassVar[str] = "InfiniteBench's form"
    """Of the prompts, beside every figure."""

    config: PasskeyConfig | NeedleConfig
    checkpoint: str
    max_positions: int
    """Positions the checkpoint was trained for."""
    cells: tuple[PasskeyCell, ...]
    date: str
    versions: dict[str, str]
    model: ModelRecord | None = None
    """None: measured before results stated it."""
    material: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Texts that the needles were hidden in, files by their SHA-256."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths, ascending."""
        return tuple(sorted({cell.length for cell in self.cells}))

    @property
    def depths(self) -> tuple[float, ...]:
        """Depths in per cent, ascending."""
        return tuple(sorted({cell.depth for cell in self.cells}))

    def accuracy(self, lengths: Collection[int], depth: float | None = None) -> float | None:
        """Share retrieved over all prompts of these lengths, at one depth or all; None: no such."""
        cells = [
            cell
            for cell in self.cells
            if cell.length in lengths and (depth is None or cell.depth == depth)
        ]
        total = sum(cell.num_samples for cell in cells)
        return sum(cell.num_retrieved for cell in cells) / total if total else None

    def save(self, path: Path) -> None:
        """Write as JSON, with the accuracy of every cell."""
        values = dataclasses.asdict(self)
        for cell, entry in zip(self.cells, values["cells"], strict=True):
            entry["accuracy"] = cell.accuracy
        write_json(path, self.kind, values)

    @classmethod
    def load(cls, path: str | Path) -> PasskeyResult:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is absent, damaged or of another kind.
        """
        values = read_json(path, cls.kind)
        try:
            config = from_dict(cls.config_class, values["config"], f"{path}: config")
            values["config"] = config
            values["model"] = model_record(values.get("model"))
            values["cells"] = tuple(map(_cell, values["cells"]))
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error!r}): evaluate again") from error


@dataclasses.dataclass(frozen=True)
class NeedleResult(PasskeyResult):
    """Retrieval of a sentence in running text: the same figures, of other prompts."""

    kind: ClassVar[str] = "needle"
    config_class: ClassVar[type[PasskeyConfig] | type[NeedleConfig]] = NeedleConfig
    title: ClassVar[str] = "Needle retrieval"
    form: ClassVar[str] = "a code in running text"


def _cell(values: dict[str, Any]) -> PasskeyCell:
    del values["accuracy"]
    return PasskeyCell(**values)
