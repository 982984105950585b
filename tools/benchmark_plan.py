"""The plan's memory beside live tensors of real training steps on this CPU.

    python tools/benchmark_plan.py layouts
    python tools/benchmark_plan.py slope

``layouts`` runs seven small layouts on gloo ranks, ``slope`` one model on rows of 8K to 64K tokens.
Every step is the program's own; live tensors are counted operation by operation, so what kernels
take inside is not seen, and offloaded tensors count where they are: in host memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import megatron.core
import numpy as np
import torch
from memory_measurement.training_step import emulated_peak_bytes, peak_bytes

from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.run import MemoryConfig
from megatron_ultralong.config.training import DataConfig, PretrainConfig
from megatron_ultralong.model.families import FAMILIES
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.plan.job import Job
from megatron_ultralong.plan.step_memory import StageMemory, step_memory

MODEL = ModelConfig(
    num_layers=4,
    hidden_size=256,
    ffn_hidden_size=704,
    num_attention_heads=8,
    num_query_groups=4,
    kv_channels=32,
    vocab_size=4096,
    norm_epsilon=1e-5,
    rotary_base=10000.0,
    max_position_embeddings=65536,
    untie_embeddings_and_output_weights=True,
)
TP2, CP2, PP2 = (
    {f"{kind}_parallel_size": 2} for kind in ("tensor_model", "context", "pipeline_model")
)
SP: dict[str, Any] = {"sequence_parallel": True}


def run(
    parallel: ParallelConfig,
    precision: str,
    *,
    seq_length: int = 4096,
    global_batch_size: int = 1,
    sequence_tile_size: int = 512,
    loss_tile_size: int = 256,
    optimizer: OptimizerConfig | None = None,
    **memory: Any,
) -> PretrainConfig:
    """A configuration by layout and memory flags."""
    return PretrainConfig(
        train_iters=2,
        global_batch_size=global_batch_size,
        precision=precision,  # type: ignore[arg-type]
        parallel=parallel,
        data=DataConfig(seq_length=seq_length),
        optimizer=optimizer or OptimizerConfig(),
        memory=MemoryConfig(
            sequence_tile_size=sequence_tile_size, loss_tile_size=loss_tile_size, **memory
        ),
    )


LAYOUTS: dict[str, tuple[int, PretrainConfig]] = {  # name: (ranks, configuration)
    "TP 2, sequence parallel": (2, run(ParallelConfig(**TP2, **SP), "bf16")),
    "CP 2": (2, run(ParallelConfig(**CP2), "fp32", recompute_granularity="full")),
    "CP 2 by heads": (
        2,
        run(ParallelConfig(**CP2, cp_comm_type="a2a"), "bf16", sequence_tile_size=64),
    ),
    "CP 4 by heads and ring": (
        4,
        run(
            ParallelConfig(
                context_parallel_size=4,
                cp_comm_type="a2a+p2p",
                hierarchical_context_parallel_sizes=(2, 2),
            ),
            "fp32",
            sequence_tile_size=64,
            loss_tile_size=32,
        ),
    ),
    "PP 2": (2, run(ParallelConfig(**PP2), "bf16", global_batch_size=3, loss_tile_size=0)),
    "DP 2, nothing recomputed": (
        2,
        run(
            ParallelConfig(),
            "fp32",
            seq_length=2048,
            global_batch_size=2,
            recompute_granularity="none",
        ),
    ),
    "TP 2, CP 2, sequence parallel, offloading": (
        4,
        run(ParallelConfig(**TP2, **CP2, **SP), "bf16", seq_length=8192, offload_activations=True),
    ),
    "CP 2, optimizer offloaded": (
        2,
        run(ParallelConfig(**CP2), "bf16", optimizer=OptimizerConfig(optimizer_cpu_offload=True)),
    ),
    "one rank, no tiles": (1, run(ParallelConfig(), "fp32", sequence_tile_size=0)),
}
LENGTHS = (8192, 16384, 32768, 65536)


def planned(model: ModelConfig, config: PretrainConfig, num_ranks: int) -> list[StageMemory]:
    """The plan's memory of every stage, for a CPU."""
    length = config.data.seq_length
    return step_memory(Job(model, config, num_ranks, length * (length + 1) / 2), "cpu")


def total(stage: StageMemory) -> int:
    """Bytes of tensors, those in host memory included; on a CPU nothing is pinned or rounded up."""
    its = stage.optimizer
    return stage.peak.total + stage.host + 16 * its.num_offloaded


def compare(
    name: str,
    num_ranks: int,
    config: PretrainConfig,
    *,
    model: ModelConfig = MODEL,
    emulate: bool,
    details: bool,
) -> dict[str, Any]:
    """One layout, planned and run: the rank with the largest peak."""
    worst = max(planned(model, config, num_ranks), key=total)
    if emulate:
        ranks_of_stage = num_ranks // config.parallel.pipeline_model_parallel_size
        measured = emulated_peak_bytes(
            model, config, num_ranks, rank=worst.stage * ranks_of_stage, details=details
        )
    else:
        measured = max(peak_bytes(model, config, num_ranks, details=details))
    if details:
        for part, size in worst.peak.parts.items():
            print(f"    {part:26} {size / 2**20:8.2f}")
        print({name: round(peak.total / 2**20, 1) for name, peak in worst.peaks.items()})
    return {
        "layout": name,
        "precision": config.precision,
        "memory": dataclasses.asdict(config.memory),
        "planned": total(worst),
        "moment": worst.peak.moment,
        "measured": measured,
        "ratio": total(worst) / measured,
    }


def slope(lengths: Sequence[int]) -> dict[str, Any]:
    """Peaks of one rank by the length of the row, planned and run; and what a token adds."""
    model = dataclasses.replace(MODEL, num_layers=3, hidden_size=128, ffn_hidden_size=384,
                                num_attention_heads=4, num_query_groups=2)  # fmt: skip
    plans, peaks = [], []
    for length in lengths:
        config = run(ParallelConfig(), "bf16", seq_length=length)
        plans.append(total(planned(model, config, 1)[0]))
        peaks.append(emulated_peak_bytes(model, config, 1, rank=0, warm_up=1024))
        print(
            f"| {length:,} | {plans[-1] / 2**20:.2f} | {peaks[-1] / 2**20:.2f} |",
            flush=True,
        )
    fits = [np.polyfit(lengths, values, 1) for values in (plans, peaks)]
    off = np.abs(np.polyval(fits[1], lengths) / np.asarray(peaks) - 1).max()
    return {
        "lengths": list(lengths),
        "planned": plans,
        "measured": peaks,
        "planned bytes a token": fits[0][0],
        "measured bytes a token": fits[1][0],
        "ratio": fits[0][0] / fits[1][0],
        "largest distance from the line": off,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["layouts", "slope"])
    parser.add_argument("--only", nargs="*", default=None, help="beginnings of layouts' names")
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS, help="of slope's rows")
    parser.add_argument(
        "--emulate",
        action="store_true",
        help="one rank of each alone in this process, with copies of what others would send",
    )
    parser.add_argument("--details", action="store_true", help="the largest tensors at the peak")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--family", choices=FAMILIES, default="llama", help="of layouts")
    arguments = parser.parse_args()
    print(
        f"`python {' '.join(sys.argv)}`, {datetime.date.today().isoformat()}, torch "
        f"{torch.__version__}, Megatron-Core {megatron.core.__version__}; MiB\n"
    )
    found: Any
    if arguments.what == "slope":
        print("| tokens | planned | measured |\n| --- | --- | --- |")
        found = slope(arguments.lengths)
        print(
            f"\na token adds {found['measured bytes a token']:.0f} bytes, planned "
            f"{found['planned bytes a token']:.0f} ({found['ratio']:.3f}); peaks are within "
            f"{found['largest distance from the line']:.2%} of a line"
        )
    else:
        print("| layout | precision | moment of the peak | planned | measured | ratio |")
        print("| --- | --- | --- | --- | --- | --- |")
        found = [_row(name, arguments) for name in LAYOUTS if _is_wanted(name, arguments.only)]
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def _is_wanted(name: str, only: Sequence[str] | None) -> bool:
    return not only or any(name.startswith(beginning) for beginning in only)


def _row(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    num_ranks, config = LAYOUTS[name]
    model = dataclasses.replace(MODEL, model_type=arguments.family)
    how = {"emulate": arguments.emulate, "details": arguments.details}
    row = compare(name, num_ranks, config, model=model, **how)
    print(
        f"| {name} | {row['precision']} | {row['moment']} | {row['planned'] / 2**20:.2f} | "
        f"{row['measured'] / 2**20:.2f} | {row['ratio']:.3f} |",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
