"""The table of sizes in docs/clusters.md, out of ``ultralong plan``.

::

    python -m tools.slurm_sizes          # write it into the page
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from megatron_ultralong.model.shape import model_by_name
from megatron_ultralong.plan.advice import best
from megatron_ultralong.plan.estimate import layout_text
from megatron_ultralong.plan.hardware import hardware_by_name
from megatron_ultralong.plan.job import Job
from megatron_ultralong.plan.report import Plan, layout_flags
from megatron_ultralong.plan.search import Found
from tools.page_tables import page_with, table

PAGE = Path(__file__).parent.parent / "docs" / "clusters.md"
HARDWARE = hardware_by_name("h100-80gb")
NUM_GPUS = (8, 64, 256)
ROW_LENGTHS = {"1m": 2**20, "2m": 2**21, "4m": 2**22}
SAVE_SECONDS = 300
"""Allowed for writing one checkpoint, beside the step that a signal waits for."""


def recipe_job(target: str, num_gpus: int) -> Job:
    """The recipe of a target on so many GPUs, in its own layout."""
    length = ROW_LENGTHS[target]
    config = PRETRAIN_RECIPES[f"llama3.1-8b-{target}"]()
    return Job(model_by_name("llama3.1-8b"), config, num_gpus, length * (length + 1) / 2)


@functools.cache
def best_layouts(target: str, num_gpus: int) -> Found:
    """What the plan finds for it."""
    return best(recipe_job(target, num_gpus), HARDWARE)


HEADER = (
    *("row", "nodes", "layout", "step (s)", "150 steps (h)", "GiB a GPU"),
    *("host GiB", "signal"),
)


class Size(NamedTuple):
    """A row of the table, and the flags that belong to it."""

    cells: tuple[str, ...]
    flags: str
    hours: float
    """Of the recipe's 150 iterations."""


@functools.cache
def size(target: str, num_gpus: int) -> Size:
    """The layout that the plan takes for a length and so many GPUs."""
    job, found = recipe_job(target, num_gpus), best_layouts(target, num_gpus)
    tokens = float(job.config.train_iters * job.tokens_per_iteration)
    recipe = f"llama3.1-8b-{target}"
    plan = Plan(recipe, "llama3.1-8b", "no document mask", tokens, found.chosen, found, None)
    step = plan.chosen.time.total
    lead = math.ceil((step + SAVE_SECONDS) / 60) * 60
    cells = (
        target.upper(),
        f"{num_gpus // 8}",
        layout_text(found.chosen.job).replace(", keep_attention", ""),
        f"{step:,.0f}",
        f"{plan.chosen.hours(tokens):,.1f}",
        f"{plan.chosen.needed / 2**30:.0f}",
        f"{plan.chosen.host.offloaded / 2**30:,.0f}",
        f"`B:USR1@{lead}`",
    )
    return Size(cells, layout_flags(plan.chosen.job), plan.chosen.hours(tokens))


def page(text: str) -> str:
    """The page with today's plan in it: a table, and each row's flags in a block below."""
    sizes = [size(target, num_gpus) for target in ROW_LENGTHS for num_gpus in NUM_GPUS]
    lines = [table(HEADER, (each.cells for each in sizes)), "", "The flags of each layout:", ""]
    blocks = [f"# {each.cells[0]}, nodes: {each.cells[1]}\n{each.flags}" for each in sizes]
    return page_with(text, "slurm_sizes", "\n".join([*lines, "```text", *blocks, "```"]))


def main() -> None:
    """Write the table into the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
