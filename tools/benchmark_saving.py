"""Time of an iteration with a checkpoint at every fifth one against that without.

::

    python tools/benchmark_saving.py --output benchmark-saving

The demo's model and rows like the demo's (4,096 tokens, CP 2, two gloo ranks). A run saves at every
tenth iteration: the five iterations after that hold the whole cost of one checkpoint (copying, its
writing in the background, making it current, removing an old one), the five after those nothing
of it. Their ratio is the cost of saving at every fifth iteration, and both halves see the same
machine. The median over all such pairs is stated, and the quartiles. A second run waits for each
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

BASE = Path(__file__).parent.parent / "examples/demo/base"
EVERY = 5
KINDS: dict[str, list[str]] = {"in the background": [], "waited for": ["--no-async-save"]}


def ultralong(*words: str, num_ranks: int = 1) -> None:
    """Run one command of the program."""
    command = [sys.executable, "-m"]
    if num_ranks > 1:
        ranks = str(num_ranks)
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", ranks, "-m"]
    command += ["megatron_ultralong", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def prepare(folder: Path) -> None:
    """Rows of Python's own library, and the converted model."""
    library = Path(os.__file__).parent
    if not (folder / "rows").exists():
        ultralong(
            *("prepare", "--source", f"library={library}/*.py", "--tokenizer", str(BASE)),
            *("--output", str(folder / "rows"), "--seq-length", "4096", "--skip-bad"),
        )
    if not (folder / "base").exists():
        ultralong("convert", "import", str(BASE), str(folder / "base"))


def measure(folder: Path, options: list[str], pairs: int) -> list[tuple[float, float]]:
    """Seconds an iteration with and without a checkpoint among five, pair by pair."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    # The first save comes after one warm-up of ten iterations, and the last one is of no pair.
    iterations = 2 * EVERY * (pairs + 1)
    ultralong(
        *("pretrain", "demo-cpu", "--load", str(folder / "base"), "--save", str(run)),
        *("--data-path", str(folder / "rows"), "--train-iters", str(iterations)),
        *("--save-interval", str(2 * EVERY), "--no-tensorboard", "--eval-interval", "0", *options),
        num_ranks=2,
    )
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    times = [record["elapsed_ms"] / 1000.0 for record in records[2 * EVERY :]]
    halves = [statistics.fmean(times[at : at + EVERY]) for at in range(0, len(times), EVERY)]
    return list(zip(halves[::2], halves[1::2], strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to work in")
    parser.add_argument("--pairs", type=int, default=16, help="checkpoints that are measured")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    prepare(arguments.output)
    for kind, options in KINDS.items():
        pairs = measure(arguments.output, options, arguments.pairs)
        low, middle, high = statistics.quantiles([one / other for one, other in pairs], n=4)
        print(
            f"a checkpoint at every {EVERY}th iteration, {kind}: {middle:.3f} of the time without "
            f"(median of {len(pairs)} pairs; quartiles {low:.3f}, {high:.3f}); medians "
            f"{statistics.median(one for one, _ in pairs):.3f} and "
            f"{statistics.median(other for _, other in pairs):.3f} s an iteration",
            flush=True,
        )


if __name__ == "__main__":
    main()
