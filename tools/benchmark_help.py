"""Processor time of every verb's `--help` and of a mistyped flag, beside `import tyro, rich`.

::

    python tools/benchmark_help.py

All in one run: each figure is the least of some tries, as a multiple of the least of the imports'.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from megatron_ultralong.cli import VERBS
from megatron_ultralong.cli.verbs import TrainingVerb, load

POSITIONALS = {"convert import": 2, "convert export": 2, "convert verify": 2, "convert inspect": 1}


def words_of(name: str) -> list[str]:
    """The verb, with what stands before its flags."""
    verb = VERBS[name]
    words = name.split()
    if isinstance(verb, TrainingVerb):
        words.append(next(iter(load(verb.recipes))))
    elif name == "plan":
        words.append("demo-cpu")
    return words + ["x"] * POSITIONALS.get(name, 0)


def processor_seconds(words: Sequence[str], tries: int) -> float:
    """User and system time of a process of this Python, the least of some tries."""
    found = []
    for _ in range(tries):
        before = os.times()
        subprocess.run(
            [sys.executable, *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        after = os.times()
        found.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
    return min(found)


def main() -> None:
    """Print one line for each verb."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tries", type=int, default=3, help="of each; the least counts")
    tries = parser.parse_args().tries
    imports = processor_seconds(["-c", "import tyro, rich"], tries)
    print(f"import tyro, rich: {imports:.3f} s\n")
    print("| verb | `--help` | a mistyped flag |\n| --- | --- | --- |")
    worst = 0.0
    for name in VERBS:
        times = [
            processor_seconds(["-m", "megatron_ultralong", *words_of(name), *last], tries) / imports
            for last in (["--help"], ["--no-such-flag", "1"])
        ]
        worst = max(worst, *times)
        print(f"| {name} | {times[0]:.1f} | {times[1]:.1f} |", flush=True)
    print(f"\nat most {worst:.1f} times")


if __name__ == "__main__":
    main()
