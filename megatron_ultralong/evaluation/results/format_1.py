"""Results of format 1, which had three types: their values as today's type holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from megatron_ultralong.evaluation.results.result import (
    KINDS,
    LOSS,
    depth_row,
    position_row,
)

Values = Mapping[str, Any]

_LATER_FLAGS = {"positions": {"split": "valid"}, "depths": {"by": "argmax"}, "tasks": {}}
"""Flags that files may lack, which were written before there was a choice."""


def upgraded(name: str, values: Values) -> list[dict[str, Any]]:
    """The results of a file of format 1 and kind ``name``, as plain values of format 2.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, ArithmeticError: the file is damaged.
    """
    rows = KINDS[name].rows
    return _UPGRADES[rows](name, values)


def _shared(name: str, values: Values) -> dict[str, Any]:
    """What all three types had; material and model came later than the first files."""
    kind, config = KINDS[name], values["config"]
    later = {flag: value for flag, value in _LATER_FLAGS[kind.rows].items() if flag not in config}
    return {
        "kind": vars(kind),
        "config": {**config, **later},
        "material": values.get("material", {}),
        "date": values["date"],
        "versions": values["versions"],
    }


def _of_loss(name: str, values: Values) -> list[dict[str, Any]]:
    return [
        {
            **_shared(name, values),
            "checkpoint": one["name"],
            "max_positions": one["max_positions"],
            "model": one.get("model"),
            "num_packed_rows": values["num_rows"],
            "cells": [_loss_cell(part) for part in one["bins"]],
        }
        for one in values["checkpoints"]
    ]


def _loss_cell(part: Values) -> dict[str, Any]:
    known = {key: part[key] for key in ("accuracy", "perplexity") if part[key] is not None}
    return {
        "row": position_row(part["start"], part["stop"]),
        "column": LOSS,
        "num_samples": part["num_predictions"],
        "score": part["loss"],
        "error": part["standard_error"],
        "figures": known,
    }


def _of_retrieval(name: str, values: Values) -> list[dict[str, Any]]:
    cells = [
        {
            "row": depth_row(cell["depth"]),
            "column": str(cell["length"]),
            "num_samples": cell["num_samples"],
            "score": 100 * cell["num_retrieved"] / cell["num_samples"],
            "figures": {"token_accuracy": cell["token_accuracy"]},
        }
        for cell in values["cells"]
    ]
    return [{**_shared(name, values), **_of_checkpoint(values), "cells": cells}]


def _of_tasks(name: str, values: Values) -> list[dict[str, Any]]:
    cells = [
        {
            "row": cell["task"],
            "column": cell["column"],
            "num_samples": cell["num_samples"],
            "score": cell["score"],
            "figures": {key: cell[key] for key in ("num_prompt_tokens", "num_truncated")},
        }
        for cell in values["cells"]
    ]
    others = {key: values[key] for key in ("metrics", "notes")}
    return [{**_shared(name, values), **_of_checkpoint(values), **others, "cells": cells}]


def _of_checkpoint(values: Values) -> dict[str, Any]:
    known = {key: values[key] for key in ("checkpoint", "max_positions")}
    return {**known, "model": values.get("model")}


_UPGRADES: dict[str, Callable[[str, Values], list[dict[str, Any]]]] = {
    "positions": _of_loss,
    "depths": _of_retrieval,
    "tasks": _of_tasks,
}
