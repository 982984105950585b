"""Table and picture of docs/parallelism.md: the rule for sizes beside the best that the plan finds.

::

    python -m tools.parallel_sizes          # write both
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from megatron_ultralong.config.run import RecomputeGranularity
from megatron_ultralong.plan.estimate import Estimate, layout_text
from megatron_ultralong.plan.hardware import Hardware
from megatron_ultralong.plan.job import GIB
from megatron_ultralong.program.aside import whole
from tools.page_tables import page_with, table
from tools.slurm_sizes import HARDWARE, ROW_LENGTHS, best_layouts, recipe_job

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "parallelism.md"
PICTURE = DOCS / "parallelism.png"
NUM_GPUS = (8, 16, 64, 256)
TENSOR_PARALLEL = 8
"""A node; Llama 3.1 8B has as many key heads."""
TOKENS_OF_A_GPU = 65_536
"""The rule: as many of a row as a GPU of 80 GB holds with attention's output kept."""
MOST_TOKENS_OF_A_GPU = 262_144
"""With what layers keep in host memory; above that attention has to be recomputed too."""


def by_rule(target: str, num_gpus: int) -> Estimate:
    """The layout of the page's rule: a node for TP, then as little CP as gives GPUs 65,536 tokens.

    Fewer where replicas would be more than rows, more where GPUs are too few.
    """
    length, config = ROW_LENGTHS[target], PRETRAIN_RECIPES[f"llama3.1-8b-{target}"]()
    nodes = num_gpus // TENSOR_PARALLEL
    cp = min(nodes, length // (TENSOR_PARALLEL * TOKENS_OF_A_GPU))
    cp = max(cp, nodes // config.global_batch_size)
    tokens = length // (TENSOR_PARALLEL * cp)
    kind: RecomputeGranularity = "keep_attention" if tokens <= MOST_TOKENS_OF_A_GPU else "full"
    return estimate(target, num_gpus, cp, kind, offload=tokens > TOKENS_OF_A_GPU)


def rows() -> Iterator[tuple[str, ...]]:
    """Of the table, one for every length and number of GPUs."""
    for target, length in ROW_LENGTHS.items():
        for num_gpus in NUM_GPUS:
            actual = by_rule(target, num_gpus)
            assert actual.refusal is None, actual.refusal
            found = best_layouts(target, num_gpus).chosen
            parallel = actual.job.parallel
            tokens = length // (TENSOR_PARALLEL * parallel.context_parallel_size)
            host = (
                f" and {actual.host.offloaded / GIB:,.0f} of a node"
                if actual.host.offloaded
                else ""
            )
            yield (
                f"{target.upper()} on {num_gpus}",
                _short(actual),
                f"{tokens:,}",
                f"{actual.needed / GIB:.0f}{host}",
                f"{actual.time.total:,.0f}",
                _short(found),
                f"{found.time.total:,.0f}",
                f"{actual.time.total / found.time.total:.2f}",
            )


HEADER = (
    *("row, GPUs", "by the rule", "tokens a GPU", "GiB a GPU", "step, s"),
    *("the plan's best", "step, s", "ratio"),
)


def page(text: str) -> str:
    """The page with the table of today's plan in it."""
    return page_with(text, "parallel_sizes", table(HEADER, rows()))


def _short(estimate: Estimate) -> str:
    """Its layout; keep_attention, the default, is left out."""
    return layout_text(estimate.job).replace(", keep_attention", "")


def hidden_from(hardware: Hardware, gb_per_second: float) -> int:
    """Tokens of a context-parallel rank from which on its ring is hidden, for Llama 3.1 8B.

    With n tokens a hop computes n^2 / 2 pairs of 4 H d FLOP forward, 10 H d backward, while 2 n K d
    numbers of 2 bytes travel, and backward 4-byte sums of their gradients too: whichever pass needs
    the more tokens.
    """
    model = recipe_job("1m", 8).model
    ratio = model.num_query_groups / model.num_attention_heads
    forward = 2 * ratio * hardware.attention_forward_tflops
    backward = 12 / 5 * ratio * hardware.attention_backward_tflops
    return round(max(forward, backward) * 1e3 / gb_per_second)


def memory_lines() -> dict[str, list[tuple[int, float]]]:
    """Tokens and GiB of a GPU under each kind of memory, TP 8 and CP 1-32 at 4M on 256 GPUs."""
    kinds: dict[str, tuple[RecomputeGranularity, bool]] = {
        "everything kept (none)": ("none", False),
        "attention kept (keep_attention)": ("keep_attention", False),
        "attention recomputed too (full)": ("full", False),
        "offloaded to the host (--offload-activations), either": ("full", True),
    }
    lines: dict[str, list[tuple[int, float]]] = {}
    for name, (kind, offload) in kinds.items():
        for cp in (1, 2, 4, 8, 16, 32):
            # As many GPUs as ranks: the optimizer's states are spread over them.
            found = estimate("4m", TENSOR_PARALLEL * cp, cp, kind, offload=offload)
            tokens = ROW_LENGTHS["4m"] // (TENSOR_PARALLEL * cp)
            lines.setdefault(name, []).append((tokens, found.needed / GIB))
    return lines


def save_picture(path: Path) -> None:
    """What a GPU needs by the tokens that it holds, and how a row lies on two nodes."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (where, memory) = pyplot.subplots(2, 1, figsize=(9, 8.5), layout="constrained",
                                              height_ratios=(1, 2))  # fmt: skip
    _draw_row(where)
    for name, points in memory_lines().items():
        memory.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
    memory.axhline(HARDWARE.memory_gib, color="black", linestyle="--", linewidth=1)
    memory.text(17_000, HARDWARE.memory_gib + 3, f"{HARDWARE.memory_gib} GiB: an H100", fontsize=9)
    memory.axvline(TOKENS_OF_A_GPU, color="grey", linestyle=":", linewidth=1)
    memory.text(TOKENS_OF_A_GPU * 1.03, 3, "the rule", fontsize=9)
    memory.set_xscale("log", base=2)
    ticks = [2**n for n in range(14, 20)]
    memory.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    memory.set_ylim(0, 160)
    memory.set_xlabel("tokens of a row on each GPU: seq_length / (TP x CP), at TP 8 with sequence "
                      "parallelism")  # fmt: skip
    memory.set_ylabel("GiB that a GPU needs")
    memory.set_title("Llama 3.1 8B: which --recompute-granularity fits (ultralong plan)")
    memory.legend(fontsize=9)
    with whole(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
    pyplot.close(figure)


def _draw_row(axes: object) -> None:
    """Context parallel ranks own chunks of the row, tensor parallel ranks heads of each chunk."""
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle

    assert isinstance(axes, Axes)
    colours = ("#3b6ea8", "#c8762b")
    for chunk, rank in enumerate((0, 1, 1, 0)):
        for head in range(TENSOR_PARALLEL):
            shade = 0.95 - 0.5 * head / TENSOR_PARALLEL
            axes.add_patch(
                Rectangle((chunk, head), 0.985, 0.9, facecolor=colours[rank], alpha=shade)
            )
        axes.text(chunk + 0.5, -0.2, f"chunk {chunk}: node {rank}", ha="center")
    axes.set_xlim(0, 4)
    axes.set_ylim(TENSOR_PARALLEL, -0.8)
    axes.set_xticks([0, 1, 2, 3, 4], ["0", "T/4", "T/2", "3T/4", "T"])
    axes.set_yticks([n + 0.45 for n in range(TENSOR_PARALLEL)],
                    [f"GPU {n}" for n in range(TENSOR_PARALLEL)])  # fmt: skip
    axes.set_xlabel("position in the row: context parallel, between nodes")
    axes.set_ylabel("heads: tensor parallel,\nin a node")
    axes.set_title("TP 8, CP 2 on two nodes of eight GPUs: whose part of the row is whose")
    for side in axes.spines.values():
        side.set_visible(False)


def estimate(
    target: str, num_gpus: int, cp: int, kind: RecomputeGranularity, *, offload: bool
) -> Estimate:
    """A layout of a target's recipe: TP 8, so much CP, the rest DP."""
    its = recipe_job(target, num_gpus)
    parallel = dataclasses.replace(
        its.parallel,
        tensor_model_parallel_size=TENSOR_PARALLEL,
        context_parallel_size=cp,
        sequence_parallel=True,
    )
    memory = dataclasses.replace(
        its.memory, recompute_granularity=kind, offload_activations=offload
    )
    config = dataclasses.replace(its.config, parallel=parallel, memory=memory)
    planned = dataclasses.replace(its, config=config)
    planned.check()
    return Estimate(planned, HARDWARE)


def main() -> None:
    """Write the table into the page, and the picture beside it."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    save_picture(PICTURE)


if __name__ == "__main__":
    main()
