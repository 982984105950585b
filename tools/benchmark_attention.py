"""Speed, balance, error and memory of ring attention, as ratios measured in one run.

    python tools/benchmark_attention.py balance   # areas alone: seconds, no attention is computed
    torchrun --nproc-per-node 8 tools/benchmark_attention.py waits  # ranks that sleep, over gloo
    python tools/benchmark_attention.py cpu       # two gloo ranks against one process
    python tools/benchmark_attention.py gpu       # a whole group's work on one GPU, minutes
    torchrun --nproc-per-node 2 tools/benchmark_attention.py ranks   # real ranks, over NCCL
    torchrun --nproc-per-node 2 tools/benchmark_attention.py peers   # beside others

Each prints a Markdown table under its conditions; benchmarks/attention.md holds the results.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys

import torch
from attention_benchmark.accuracy import accuracy
from attention_benchmark.balance import balance
from attention_benchmark.cpu import cpu
from attention_benchmark.gpu import gpu
from attention_benchmark.peers import LENGTHS, peers
from attention_benchmark.ranks import ranks
from attention_benchmark.waits import waits

from megatron_ultralong.program.errors import InputError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, head_dim, repeat in (
        (balance, 128, 1),
        (cpu, 64, 5),
        (gpu, 128, 3),
        (ranks, 128, 5),
        (accuracy, 128, 1),
        (waits, 128, 1),
        (peers, 128, 5),
    ):
        text = (verb.__doc__ or "").strip().splitlines()[0]
        each = verbs.add_parser(verb.__name__, help=text)
        each.set_defaults(run=verb)
        each.add_argument("--heads", type=int, default=4)
        each.add_argument("--kv-heads", type=int, default=1)
        each.add_argument("--head-dim", type=int, default=head_dim)
        each.add_argument("--local-tokens", type=int, default=262_144)
        each.add_argument("--cp", type=int, default=16)
        each.add_argument("--lengths", type=int, nargs="+", default=[16_384, 32_768])
        each.add_argument("--kernels", nargs="+", default=["fa3", "fa4", "cudnn", "fa2"])
        each.add_argument("--parts", nargs="+", default=["rank", "documents", "none", "accuracy"])
        each.add_argument(
            "--seconds",
            type=float,
            default=3.0,
            help="of each single kernel; of peers: of all lengths",
        )
        each.add_argument("--repeat", type=int, default=repeat)
        each.add_argument("--seeds", type=int, default=3)
        each.add_argument("--device", default="cuda")
    _add_of_peers(verbs.choices["peers"])
    return parser


def _add_of_peers(parser: argparse.ArgumentParser) -> None:
    """Other defaults, and options that ``peers`` alone has."""
    parser.set_defaults(
        heads=8,
        kv_heads=2,
        lengths=LENGTHS,
        kernels=["same", "best"],
        parts=["none", "documents"],
        seconds=150.0,
    )
    add = parser.add_argument
    add("--contestants", nargs="+", default=[""], help="words of the names that take part")
    add("--check-tokens", type=int, default=4096, help="of the row over which all is compared")
    add(
        "--profile", action="store_true", help="print the longest kernels of each, beside the table"
    )
    add("--rows", type=int, default=512, help="queries that are compared at every length")
    add("--seconds-of-a-call", type=float, default=180.0, help="after which it has failed")


if __name__ == "__main__":
    arguments = _parser().parse_args()
    where = platform.processor() or platform.machine()
    if arguments.verb in ("gpu", "ranks", "accuracy", "peers") and torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    today = datetime.date.today().isoformat()
    if os.environ.get("RANK", "0") == "0":
        print(f"`python {' '.join(sys.argv)}`, {today}, torch {torch.__version__}, {where}\n")
    try:
        arguments.run(arguments)
    except InputError as error:
        sys.exit(f"error: {error}")
