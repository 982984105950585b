"""Seconds to make one sample of RULER, on one core, with Llama 3's vocabulary.

    python tools/benchmark_ruler.py

Tasks whose files are not named are left out; the others need none. The vocabulary is that of the
package llama-models. Each sample is checked: prompt and answer within the length, and one unit of
haystack more beyond it. Figures of the project: ``benchmarks/ruler.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

from megatron_ultralong.evaluation.ruler.evaluation import RulerSamples
from megatron_ultralong.evaluation.ruler.parameters import TASKS, NeedleTask, RulerConfig, family
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer


def llama3_folder() -> Path:
    """Where Llama 3's tokenizer.model is."""
    import llama_models

    return Path(llama_models.__file__).parent / "llama3"


def tasks_with_files(arguments: argparse.Namespace) -> list[str]:
    """Tasks that need no file, and those whose file is given."""
    chosen = []
    for name, task in TASKS.items():
        needs_essays = isinstance(task, NeedleTask) and task.haystack == "essay"
        file = "essays" if needs_essays else getattr(task, "dataset", "")
        if not file or getattr(arguments, file):
            chosen.append(name)
    return chosen


def measure(
    task: str, length: int, arguments: argparse.Namespace, tokenizer: PromptTokenizer
) -> str:
    """A row of the table: a sample made from nothing but the tokenizer and the files' names."""
    files = {name: getattr(arguments, name) for name in ("essays", "squad", "hotpotqa")}
    wall, cpu = time.perf_counter(), time.process_time()
    samples = RulerSamples(RulerConfig(lengths=(length,), seed=arguments.seed, **files), tokenizer)
    sample = samples.sample(task, length, 0)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    room = length - family(task).tokens_to_generate
    left = room - sample.tokens.size
    builder = samples.builder(task, length, 0)
    unit = samples.prompt(builder, sample.num_units + 1).size - sample.tokens.size
    if left < 0 or left >= max(unit, 1):
        sys.exit(
            f"error: {task} at {length}: {sample.tokens.size} tokens in a room of {room}, "
            f"and one unit more takes {unit}"
        )
    return (
        f"| {length:,} | {task} | {wall:.2f} | {cpu:.2f} | {sample.tokens.size:,} | "
        f"{length - room} | {left} | {unit} |"
    )


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[1 << 20, 1 << 22])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS))
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--essays", default="", help="as those of `ultralong evaluate ruler`")
    parser.add_argument("--squad", default="")
    parser.add_argument("--hotpotqa", default="")
    arguments = parser.parse_args()

    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})  # threads of the tokenizer inherit it
    start = time.perf_counter()
    tokenizer = PromptTokenizer(llama3_folder())
    packages = ("gigatoken", "numpy", "wonderwords", "llama-models")
    print(
        f"{platform.machine()}, one core, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + f"; the tokenizer took {time.perf_counter() - start:.1f} s to load, once\n"
    )
    print("| length | task | s | s of CPU | prompt | answer | left | next unit |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for length in arguments.lengths:
        for task in arguments.tasks or tasks_with_files(arguments):
            print(measure(task, length, arguments, tokenizer), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nPeak of the process: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
