"""The table of sizes in docs/clusters.md, out of ``ultralong plan``.

::

    python tools/slurm_sizes.py          # write it into the page
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.plan.hardware import hardware_by_name
from megatron_ultralong.plan.job import Job
from megatron_ultralong.plan.report import Plan
from megatron_ultralong.plan.search import best
from megatron_ultralong.plan.shapes import model_by_name
from megatron_ultralong.recipes import PRETRAIN_RECIPES

PAGE = Path(__file__).parent.parent / "docs" / "clusters.md"
GPU = "h100-80gb"
NUM_GPUS = (8, 64, 256)
ROW_LENGTHS = {"1m": 2**20, "2m": 2**21, "4m": 2**22}
SAVE_SECONDS = 300
"""Allowed for writing one checkpoint, beside the step that a signal waits for."""
BEGIN, END = "<!-- tools/slurm_sizes.py: begin -->", "<!-- end -->"


def lines() -> Iterator[str]:
    """Lines of the table, one for every length and number of GPUs."""
    names = "row, nodes, layout, a step (s), 150 steps (hours), GiB a GPU, host GiB a node, signal"
    yield "| " + " | ".join(names.split(", ")) + " |"
    yield "|" + " --- |" * len(names.split(", "))
    for target in ROW_LENGTHS:
        for num_gpus in NUM_GPUS:
            yield _line(target, num_gpus)


def _line(target: str, num_gpus: int) -> str:
    recipe = f"llama3.1-8b-{target}"
    config, length = PRETRAIN_RECIPES[recipe](), ROW_LENGTHS[target]
    job = Job(model_by_name("llama3.1-8b"), config, num_gpus, length * (length + 1) / 2)
    found = best(job, hardware_by_name(GPU))
    tokens = float(config.train_iters * job.tokens_per_iteration)
    plan = Plan(recipe, "llama3.1-8b", "no document mask", tokens, found.feasible[0], found, None)
    step = plan.chosen.time.total
    lead = math.ceil((step + SAVE_SECONDS) / 60) * 60
    return (
        f"| {target.upper()} | {num_gpus // 8} | `{plan.flags()}` | {step:,.0f} "
        f"| {plan.chosen.hours(tokens):,.1f} | {plan.chosen.needed / 2**30:.0f} "
        f"| {plan.chosen.host_per_node / 2**30:,.0f} | `B:USR1@{lead}` |"
    )


def page(text: str) -> str:
    """The page with the table of today's plan in it."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    table = "\n".join(lines())
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> None:
    """Write the table into the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
