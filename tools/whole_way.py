"""The table of docs/llama31_8b.md, out of the first lines of examples/llama3.1-8b's scripts.

::

    python -m tools.whole_way          # write it into the page
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.config.recipes import SFT_RECIPES
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.flops import forward_flops
from megatron_ultralong.model.shape import model_by_name
from megatron_ultralong.plan.area import expected_area
from megatron_ultralong.plan.estimate import Estimate
from megatron_ultralong.plan.job import GIB, Job
from megatron_ultralong.sequence.documents import causal_area
from tools.page_tables import page_with, table
from tools.slurm_sizes import HARDWARE, ROW_LENGTHS, recipe_job

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "llama31_8b.md"
SCRIPTS = ROOT / "examples" / "llama3.1-8b"
FACTS = ("time", "memory", "disk", "see")
RECIPES_GPUS = {"1m": 32, "2m": 128, "4m": 128}
"""What the layouts of the recipes come to."""
NUM_GPUS = 8
"""Of instruction tuning and evaluations."""
SHARE_OF_PEAK = 0.4
CONVERSATIONS, CONVERSATION_TOKENS = 100_000, 1_000
ROW_TOKENS = 8_192
PROMPTS = {"1m": 5, "2m": 2, "4m": 1}
LOSS_ROWS = {"1m": 8, "2m": 4, "4m": 2}
NUM_DEPTHS = 10
SHORTEST = 131_072


def facts(script: Path) -> dict[str, str]:
    """What the script's first lines say that it takes, by name."""
    found: dict[str, str] = {}
    name = ""
    for line in script.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        start = re.match(rf"# ({'|'.join(FACTS)}): +(.*)", line)
        if start:
            name, found[start[1]] = start[1], start[2]
        elif name:
            found[name] += " " + line.removeprefix("#").strip()
    return found


def rows() -> Iterator[tuple[str, ...]]:
    """Of the table, one for every script."""
    for script in sorted(SCRIPTS.glob("0*.sh")):
        its = facts(script)
        number, words = script.stem.split("_", 1)
        yield (f"{int(number)} {words.replace('_', ' ')}", *(its[name] for name in FACTS))


def page(text: str) -> str:
    """The page with the table of today's scripts in it."""
    return page_with(text, "whole_way", table(("step", "time", "memory", "disk", "to see"), rows()))


def computed() -> Iterator[tuple[str, str, str]]:
    """Script, fact and text of every figure that comes out of the plan or of FLOPs."""
    for target, num_gpus in RECIPES_GPUS.items():
        found = Estimate(recipe_job(target, num_gpus), HARDWARE)
        tokens = float(found.job.config.train_iters * found.job.tokens_per_iteration)
        hours, step = found.hours(tokens), found.time.total
        yield "04", "time", f"{target} on {num_gpus} GPUs {hours:.0f} hours, {step:.0f} s a step"
        yield "04", "memory", f"{target} {found.needed / GIB:.0f} GiB"
    tuning = _tuning()
    steps = math.ceil(
        CONVERSATIONS * CONVERSATION_TOKENS / ROW_TOKENS / tuning.job.config.global_batch_size
    )
    hours = steps * tuning.time.total / 3600
    yield "05", "time", f"{hours:.1f} hours on {NUM_GPUS} GPUs for {CONVERSATIONS:,} conversations"
    yield "05", "time", f"of {CONVERSATION_TOKENS:,} tokens: {steps} steps of "
    yield "05", "time", f"{tuning.time.total:.0f} s"
    yield "05", "memory", f"{tuning.needed / GIB:.0f} GiB a GPU"
    for target, length in ROW_LENGTHS.items():
        lengths = {SHORTEST, length // 4, length // 2, length}
        map_hours = PROMPTS[target] * NUM_DEPTHS * sum(map(_forward_hours, lengths))
        yield "06", "time", f"{map_hours:.1f}"
        yield "06", "time", f"{2 * LOSS_ROWS[target] * _forward_hours(length):.1f}"
        # Keys and values: two bytes a number.
        model = model_by_name("llama3.1-8b")
        numbers = 2 * model.num_layers * model.num_query_groups * model.kv_channels
        yield "08", "memory", f"{2 * numbers * length / GIB:.0f}"


def _tuning() -> Estimate:
    config: TrainingConfig = SFT_RECIPES["llama3.1-8b-sft"]()
    data = dataclasses.replace(config.data, seq_length=ROW_TOKENS)
    config = dataclasses.replace(config, data=data, train_iters=1)
    area = expected_area(ROW_TOKENS, CONVERSATION_TOKENS)
    return Estimate(Job(model_by_name("llama3.1-8b"), config, NUM_GPUS, area), HARDWARE)


def _forward_hours(length: int) -> float:
    """Of one pass over a row on the GPUs of an evaluation."""
    flops = forward_flops(model_by_name("llama3.1-8b"), length, causal_area([0, length])).total
    return flops / (SHARE_OF_PEAK * HARDWARE.peak_tflops * 1e12 * NUM_GPUS) / 3600


def main() -> None:
    """Write the table into the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
