"""Attention of this project beside that of Transformer Engine and of PyTorch, all in one run."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

import torch
import torch.distributed as dist

from megatron_ultralong.program.errors import InputError

from .agreement import Agreement, AttemptError
from .contest import Contestant, Groups, Task
from .exact_rows import all_rows
from .own_attention import own_contestants
from .peer_table import COLUMNS, Ratio, Table, block, verdict
from .race import Clock, Race, able, one_call
from .recipe_lengths import recipe_lengths
from .torch_attention import torch_contestants
from .torch_flex_attention import FlexAttention
from .transformer_engine_attention import transformer_engine_contestants

LENGTHS = [65_536, 131_072, 262_144, 524_288, 1_048_576]
KERNELS = ("same", "best")
Field = dict[tuple[bool, str], list[Contestant]]  # by whether there are documents, and by kernel


def peers(arguments: argparse.Namespace) -> None:
    """Ring attention beside Transformer Engine and PyTorch over real ranks, in turns."""
    device = _start(arguments)
    field = {
        (documents, kernel): contestants(kernel, documents)
        for documents in (part == "documents" for part in arguments.parts if part != "accuracy")
        for kernel in _kernels(arguments, device)
    }
    were_renewed = compare(arguments, device, field)
    dist.barrier()  # no rank leaves while another still works
    if were_renewed and device.type == "cuda":
        sys.stdout.flush()
        os._exit(0)  # a communicator that was aborted may never be closed in order
    dist.destroy_process_group()


def contestants(kernel: str, documents: bool) -> list[Contestant]:
    """All of them, this project's reference first."""
    return [
        *own_contestants(kernel, documents),
        *transformer_engine_contestants(kernel),
        *torch_contestants(kernel),
        *([FlexAttention(kernel)] if kernel == "best" else []),
    ]


def compare(arguments: argparse.Namespace, device: torch.device, field: Field) -> bool:
    """Check all, then run those that can over all lengths, and say what was asked for.

    Returns:
        Whether a contestant failed among others' messages, so that groups were made again.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    groups = Groups(device)
    agreement = Agreement(groups, arguments.seconds_of_a_call)
    table = Table(groups.rank == 0)
    table.say(_conditions(arguments, groups.size, dtype))

    def task(length: int, documents: bool) -> Task:
        edges = document_edges(length) if documents else None
        return Task(length, edges, arguments, dtype, groups)

    chosen = {key: list(_named(arguments, its)) for key, its in field.items()}
    table.header("kernels", "documents", "contestant", "kernel", "error of out", "dq", "dk", "dv")
    for (documents, kernel), its in chosen.items():
        its[:] = _able(table, agreement, task(arguments.check_tokens, documents), kernel, its)
    race = Race(agreement, groups, Clock(arguments.seconds), arguments.repeat, arguments.rows)
    found: list[Ratio] = []
    table.header(*COLUMNS)
    for length in arguments.lengths:
        for (documents, kernel), its in chosen.items():
            found += block(table, race, task(length, documents), kernel, its)
            if arguments.profile:
                _profile(agreement, task(length, documents), kernel, its)
    verdict(table, found)
    return groups.renewals > 0


def _profile(agreement: Agreement, task: Task, kernel: str, its: Sequence[Contestant]) -> None:
    """Print where the device time of each goes, of one more forward and backward pass."""
    from rank_benchmark.kernels import print_kernels  # beside this package, in a program alone

    for each in its:
        run = partial(one_call, task, each)
        if task.groups.rank == 0:
            title = f"{task.length:,} tokens, {task.mask}, {kernel}, {each.name}"
            run = partial(print_kernels, title, run)
        with suppress(AttemptError):  # a row of the table has said so
            agreement.attempt(run)


def document_edges(length: int) -> list[int]:
    """Documents of the recipe's lengths; of a row below 65,536 tokens, shrunk with it."""
    whole = max(length, LENGTHS[0])
    edges = recipe_lengths(whole, 0)
    return sorted({edge * length // whole for edge in edges})


def _silence() -> None:
    """What libraries say of themselves between the rows of the table."""
    for message in ("Attempting to run cuBLAS", r"Argument \w+ \(position"):
        warnings.filterwarnings("ignore", message=message)


def _start(arguments: argparse.Namespace) -> torch.device:
    """Join the ranks.

    Raises:
        InputError: there are none, or a length does not divide among them.
    """
    if "RANK" not in os.environ:
        raise InputError("peers runs over ranks: start it with torchrun --nproc-per-node 2")
    size = int(os.environ["WORLD_SIZE"])
    for length in (*arguments.lengths, arguments.check_tokens):
        if length % (2 * size):
            raise InputError(
                f"a row of {length} tokens does not divide into {2 * size} chunks, two for each of "
                f"{size} ranks: use {-(-length // (2 * size)) * 2 * size}"
            )
    _silence()
    device = torch.device(arguments.device)
    if device.type == "cuda":
        # A group of contestants that has failed is given up and made again, not the process.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        device = torch.device("cuda", torch.cuda.current_device())
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host's name may lead nowhere
    dist.init_process_group("gloo")
    return device


def _kernels(arguments: argparse.Namespace, device: torch.device) -> list[str]:
    """A CPU has one kernel for all.

    Raises:
        InputError: another word.
    """
    for kernel in arguments.kernels:
        if kernel not in KERNELS:
            raise InputError(f"--kernels {kernel} is not one of {', '.join(KERNELS)}")
    return list(arguments.kernels) if device.type == "cuda" else ["same"]


def _named(arguments: argparse.Namespace, its: list[Contestant]) -> Iterator[Contestant]:
    """Those whose name has one of the words; the reference always."""
    for each in its:
        words = [word for word in arguments.contestants if word or not each.is_by_name]
        if each.is_reference or any(word in each.name for word in words):
            yield each


def _conditions(arguments: argparse.Namespace, size: int, dtype: torch.dtype) -> str:
    return (
        f"{size} ranks, {dtype}, {arguments.heads} heads, {arguments.kv_heads} key heads, head "
        f"size {arguments.head_dim}. First, errors over rows of {arguments.check_tokens:,} tokens "
        "against float64: relative root mean square of all rows. Then medians of up to "
        f"{arguments.repeat} turns, in which all contestants of a block follow each other, of the "
        "slowest rank; GiB at the peak of forward and backward beyond inputs and results, of the "
        f"fullest rank; errors over {arguments.rows} queries. Kernels: same is cuDNN for all, best "
        "the fastest that each has here. PyTorch's FlexAttention takes part if --contestants "
        "names it (its kernel is compiled for every length). Transformer Engine pads every "
        f"document to a multiple of {2 * size} tokens."
    )


def _able(
    table: Table, agreement: Agreement, task: Task, kernel: str, its: list[Contestant]
) -> list[Contestant]:
    """Those that can run; a row for each."""
    found = []
    exact = all_rows(task)
    for each in its:
        try:
            contestant, errors = able(agreement, task, each, exact)
        except AttemptError as failure:
            table.row(kernel, task.mask, each.name, f"cannot run: {failure}", *["-"] * 4)
            continue
        contestant.is_reference = each.is_reference
        found.append(contestant)
        name = contestant.kernel_name(task) + (f" ({contestant.note})" if contestant.note else "")
        table.row(kernel, task.mask, each.name, name, *(f"{error:.1e}" for error in errors))
    return found
