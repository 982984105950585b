"""What each size of machine can train, in docs/your-own-model.md: a table that `plan` makes.

::

    python -m tools.recipe_sizes
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from megatron_ultralong.config.plain_values import with_fields
from megatron_ultralong.config.recipes import SFT_RECIPES, extend
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.shape import model_by_name
from megatron_ultralong.plan.advice import best
from megatron_ultralong.plan.command import short_length
from megatron_ultralong.plan.estimate import Estimate, layout_text
from megatron_ultralong.plan.hardware import hardware_by_name
from megatron_ultralong.plan.job import GIB, Job
from megatron_ultralong.plan.report import layout_flags
from megatron_ultralong.sequence.documents import causal_area
from tools.page_tables import page_with, table

PAGE = Path(__file__).parent.parent / "docs" / "your-own-model.md"
HARDWARE = hardware_by_name("h100-80gb")
_HOST = ("optimizer_cpu_offload",)


class Case(NamedTuple):
    """A row of the table."""

    num_gpus: int
    model: str
    seq_length: int
    flags: tuple[str, ...] = ()
    """That are set."""
    recipe: str = "extend"


CASES = (
    Case(1, "llama3.2-1b", 2**17),
    Case(1, "llama3.2-1b", 2**18),
    Case(1, "llama3.1-8b", 8192, _HOST, "llama3.1-8b-sft"),
    Case(2, "llama3.2-3b", 2**18),
    Case(2, "llama3.1-8b", 2**17, _HOST),
    *(Case(8, "llama3.1-8b", 2**power) for power in range(17, 21)),
    *(Case(num_gpus, "llama3.1-8b", 2**power) for num_gpus in (64, 256) for power in (20, 21, 22)),
)


@functools.cache
def estimates() -> tuple[Estimate, ...]:
    """The layout that the plan takes for each case."""
    return tuple(best(_job(case), HARDWARE).chosen for case in CASES)


def _job(case: Case) -> Job:
    config: TrainingConfig
    if case.recipe == "extend":
        config = extend(case.seq_length, 8192)
    else:
        config = with_fields(SFT_RECIPES[case.recipe](), seq_length=case.seq_length)
        # Rows of one document: the most that attention can take.
        config = with_fields(config, document_mask="none", reset_position_ids=False)
    pinned = frozenset(case.flags)
    area = causal_area([0, case.seq_length])
    model = model_by_name(case.model)
    return Job(
        model,
        with_fields(config, **dict.fromkeys(case.flags, True)),
        case.num_gpus,
        area,
        pinned=pinned,
    )


HEADER = (
    *("GPUs", "model", "row", "layout", "GiB a GPU", "host GiB a node", "step, s", "MFU"),
    "hours",
)


def rows() -> Iterator[tuple[str, ...]]:
    """Of the table."""
    for case, its in zip(CASES, estimates(), strict=True):
        iterations = its.job.config.train_iters or 1
        tokens = float(iterations * its.job.tokens_per_iteration)
        hours = f"{its.hours(tokens):,.1f}" if case.recipe == "extend" else "-"
        yield (
            str(case.num_gpus),
            case.model + (" (sft)" if case.recipe != "extend" else ""),
            short_length(case.seq_length),
            layout_text(its.job),
            f"{its.needed / GIB:.1f}",
            f"{its.host.offloaded / GIB:,.0f}" if its.host.offloaded else "-",
            f"{its.time.total:,.0f}",
            f"{its.mfu:.0%}",
            hours,
        )


def page(text: str) -> str:
    """The page with the table of today's plan in it."""
    return page_with(text, "recipe_sizes", table(HEADER, rows()))


def flags_of(num_gpus: int, seq_length: int) -> str:
    """The layout of a case of the 8B by ``extend``, as flags."""
    (its,) = (
        its
        for case, its in zip(CASES, estimates(), strict=True)
        if (case.num_gpus, case.seq_length) == (num_gpus, seq_length)
    )
    return layout_flags(its.job)


def main() -> None:
    """Write the table into the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
