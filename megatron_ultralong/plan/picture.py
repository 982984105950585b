"""Memory by part as stacked bars, one for each layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from megatron_ultralong.plan.estimate import Estimate, layout_text
from megatron_ultralong.plan.job import GIB
from megatron_ultralong.plan.ledger import Part


def save_memory_picture(path: Path, estimates: Sequence[Estimate]) -> None:
    """Write a PNG: a GPU's memory at the peak of every layout, and what the GPU has."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        figsize=(10, max(3.4, 1.2 + 0.5 * len(estimates))), layout="constrained"
    )
    labels = [layout_text(each.job) for each in estimates]
    left = [0.0] * len(estimates)
    colours = pyplot.get_cmap("tab20")
    for number, part in enumerate(get_args(Part)):
        widths = [each.worst.peak.parts.get(part, 0) / GIB for each in estimates]
        if any(widths):
            axes.barh(labels, widths, left=left, label=part, color=colours(number))
            left = [a + b for a, b in zip(left, widths, strict=True)]
    allowances = [sum(each.allowance.values()) / GIB for each in estimates]
    axes.barh(labels, allowances, left=left, label="allowance", color="lightgrey")
    hardware = estimates[0].hardware
    axes.axvline(hardware.memory_gib, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel(f"GiB of a GPU at the peak of a step; dashed: {hardware.name}")
    axes.invert_yaxis()
    figure.legend(loc="outside right center", fontsize="small")
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=120)
    pyplot.close(figure)
    partial.replace(path)
