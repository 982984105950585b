"""RULER's metrics: how much of what an answer has to hold is in it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from megatron_ultralong.evaluation.ruler.parameters import Metric

_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(prediction: str) -> str:
    """What a model wrote, without control characters and space around it."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def string_match(metric: Metric, prediction: str, references: Sequence[str]) -> float:
    """Score of one answer, 0 to 1, whatever the letters' case.

    ``string_match_all``: share of the references that stand in the answer;
    ``string_match_part``: 1 if any does (``scripts/eval/synthetic/constants.py`` upstream).
    """
    text = cleaned(prediction).lower()
    found = [reference.lower() in text for reference in references]
    return float(any(found)) if metric == "string_match_part" else sum(found) / len(found)
