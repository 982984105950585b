"""``tools/benchmark_attention.py peers``: on two ranks of the CPU, and with one that fails."""

from __future__ import annotations

import argparse
import io
import itertools
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as functional
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from megatron_ultralong.attention import reference
from tests.patience import patience
from tests.ranks import run_on_ranks
from tools.attention_benchmark.contest import PADDING, Groups, Task, local
from tools.attention_benchmark.own_attention import OwnRing
from tools.attention_benchmark.peer_table import COLUMNS, Table, block, verdict
from tools.attention_benchmark.peers import compare, contestants, document_edges
from tools.attention_benchmark.race import Figures
from tools.attention_benchmark.torch_attention import kept_attention, torch_contestants
from tools.attention_benchmark.torch_flex_attention import FlexAttention
from tools.attention_benchmark.transformer_engine_attention import padded, padded_positions

ROOT = Path(__file__).parents[2]
SIZES = {"heads": 4, "kv_heads": 2, "head_dim": 16, "contestants": [""], "repeat": 1, "profile": 0}
# Of float32 over 512 keys: its rounding is 6e-8, and a result is a sum of many.
FLOAT32 = 1e-6
RUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SMALL = "--device cpu --profile --head-dim 32 --check-tokens 512 --rows 32 --lengths 512 1024"


def _cells(output: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in output.splitlines() if line[:2] == "| "]


def _all_contestants() -> str:
    """As the program has them."""
    return _said(
        {(documents, "same"): contestants("same", documents) for documents in (False, True)},
        lengths=[512, 1024],
        check_tokens=512,
        rows=32,
    )


def _said(field, **sizes):
    """What a rank prints."""
    arguments = argparse.Namespace(**SIZES, **sizes, seconds=60.0, seconds_of_a_call=60.0)
    said = io.StringIO()
    with redirect_stdout(said):
        compare(arguments, torch.device("cpu"), field)
    dist.barrier()  # no rank leaves while another still works
    return said.getvalue()


def test_all_that_runs_on_a_cpu_is_exact_and_the_rest_says_why():
    said, nothing = run_on_ranks(2, _all_contestants)
    assert not nothing, "one rank prints"
    _check(said)


@pytest.mark.slow
def test_the_program_under_torchrun():
    words = [
        str(ROOT / "tools" / "benchmark_attention.py"),
        "peers",
        "--repeat",
        "1",
        *SMALL.split(),
    ]
    run = subprocess.run(
        [*RUN, *words], capture_output=True, text=True, timeout=patience(240), check=False
    )
    assert run.returncode == 0, run.stderr
    _check(run.stdout)


def _check(said: str) -> None:
    rows = _cells(said)
    checked = [(row[1], row[2], row[3], row[4:]) for row in rows if len(row) == 8][2:]
    runs, refused = {}, {}
    for mask, name, kernel, errors in checked:
        (refused if kernel.startswith("cannot run: ") else runs)[name, mask == "none"] = kernel
        if "cannot run" not in kernel:
            assert all(float(error) < FLOAT32 for error in errors), (name, mask, errors)
    own = {"p2p", "all_gather", "a2a"}
    assert {name for name, is_plain in runs if is_plain} == {
        *(f"megatron-ultralong {exchange}" for exchange in own),
        *(f"PyTorch context_parallel {rotation}" for rotation in ("allgather", "alltoall")),
    }
    with_documents = {"p2p, balanced", "p2p", "all_gather, balanced", "a2a"}
    assert {name for name, is_plain in runs if not is_plain} == {
        f"megatron-ultralong {exchange}" for exchange in with_documents
    }
    assert "4, 6, 8, ... ranks, not 2" in refused["megatron-ultralong a2a+p2p", True]
    for exchange in ("p2p", "all_gather", "a2a", "a2a+p2p"):
        assert refused[f"Transformer Engine {exchange}", False].startswith("cannot run: ")
    for rotation in ("allgather", "alltoall"):
        reason = refused[f"PyTorch context_parallel {rotation}", False]
        assert reason.startswith("cannot run: context_parallel takes no documents: ")
    timed = [row for row in rows if len(row) == len(COLUMNS) and row[0][0].isdigit()]
    assert {row[0] for row in timed} == {"512", "1,024"}
    assert len(timed) == 2 * len(runs)
    assert all(max(float(row[8]), float(row[9])) < FLOAT32 for row in timed)


def _flex_forward() -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of this rank's tokens, and their output."""
    arguments = argparse.Namespace(**SIZES)
    groups = Groups(torch.device("cpu"))
    task = Task(512, document_edges(512), arguments, torch.float32, groups)
    flex = FlexAttention("best")
    with torch.no_grad():
        flex.prepare(task)
        out = flex.attention(task, *local(task, flex)[:3])
    dist.barrier()
    return flex.positions(task), flex.returned(out)


def test_flex_attention_sees_the_same_documents():
    """Its backward pass is for GPUs alone."""
    task = Task(512, document_edges(512), argparse.Namespace(**SIZES), torch.float32, _ONE)
    exact = reference.attention(*task.tensors[:3], cu_seqlens=task.cu_seqlens)
    for positions, out in run_on_ranks(2, _flex_forward):
        error = (out - exact[positions]).norm() / exact[positions].norm()
        assert error < FLOAT32


_ONE = SimpleNamespace(device=torch.device("cpu"))


def _over_renewed_groups() -> list[bool]:
    """Of results before and after: the group that PyTorch would send over is the present one."""
    groups = Groups(torch.device("cpu"))
    found = []
    for _ in range(3):
        x = distribute_tensor(torch.ones(8, 4, requires_grad=True), groups.mesh(), [Shard(0)])
        y = x @ distribute_tensor(torch.ones(4, 4), groups.mesh(), [Replicate()])
        (dx,) = torch.autograd.grad(y.sum(), x)
        found.append(all(z.device_mesh.get_group() is groups.world for z in (x, y, dx)))
        assert groups.mesh() is groups.mesh()
        groups.renew()
    dist.barrier()
    return found


def test_no_tensor_keeps_a_group_that_was_given_up():
    assert run_on_ranks(2, _over_renewed_groups) == [[True] * 3] * 2


def _leaves_another() -> None:
    with kept_attention():
        functional.scaled_dot_product_attention = None
        raise RuntimeError("planted")


def test_attention_of_pytorch_is_back_after_an_error():
    before = functional.scaled_dot_product_attention
    with pytest.raises(RuntimeError, match="planted"):
        _leaves_another()
    assert functional.scaled_dot_product_attention is before


class _Fails(OwnRing):
    """The ring, which one rank leaves."""

    def __init__(self, where, rank, length):
        super().__init__("same", "p2p")
        self.name = "one that fails"
        self._where, self._its_rank, self._length = where, rank, length

    def _may_fail(self, where, task):
        is_here = (where, task.groups.rank) == (self._where, self._its_rank)
        if is_here and task.length >= self._length:
            raise RuntimeError(f"planted in {where}")

    def check(self, task):
        self._may_fail("check", task)

    @contextmanager
    def running(self, task):
        self._may_fail("running", task)
        yield

    def attention(self, task, q, k, v):
        self._may_fail("forward", task)
        out = super().attention(task, q, k, v)
        return _LeavesBackward.apply(out, lambda: self._may_fail("backward", task))

    def returned(self, x):
        x = super().returned(x)
        return x * 2 if self._where == "result" else x


class _LeavesBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fail):
        ctx.fail = fail
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.fail()
        return gradient, None


def _with_one_that_fails(where, rank, length):
    reference = OwnRing("same", "p2p")
    reference.is_reference = True
    its = [reference, _Fails(where, rank, length), *torch_contestants("same")[:1]]
    return _said({(False, "same"): its}, lengths=[64, 128], check_tokens=32, rows=16)


PLACES = [
    ("check", 32),
    *((where, n) for where in ("running", "forward", "backward") for n in (32, 128)),
]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("where", "length"), PLACES)
def test_one_rank_that_raises_is_a_row_and_the_others_continue(where, rank, length):
    said, nothing = run_on_ranks(2, _with_one_that_fails, where, rank, length)
    assert not nothing, "one rank prints"
    rows = _cells(said)
    failures = [row for row in rows if any("cannot run" in cell for cell in row)]
    assert len(failures) == 1
    assert f"cannot run: rank {rank}: RuntimeError: planted in {where}" in " ".join(failures[0])
    # The reference and PyTorch's ring at both lengths, and it at the length before it failed.
    timed = [
        row for row in rows if len(row) == len(COLUMNS) and row[0].isdigit() and row not in failures
    ]
    assert len(timed) == (4 if length == 32 else 5)


def test_what_computes_something_else_is_a_row_too():
    said, _ = run_on_ranks(2, _with_one_that_fails, "result", 0, 0)
    assert "| cannot run: it computes something else: relative errors 1.0e+00" in said


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.sampled_from([1, 2, 4]))
def test_padded_documents_hold_every_token_once(lengths, size):
    edges = [0]
    for length in lengths:
        edges.append(edges[-1] + length)
    edges = tuple(edges)
    cu_padded = padded(edges, 2 * size)
    multiple = 2 * size
    assert all(edge % multiple == 0 for edge in cu_padded)
    parts = [padded_positions(edges, size, rank) for rank in range(size)]
    assert {len(part) for part in parts} == {cu_padded[-1] // size}
    held = torch.cat(parts)
    assert held[held != PADDING].sort().values.tolist() == list(range(edges[-1]))
    for part in parts:  # two pieces of every document, in the order of the row
        tokens = part[part != PADDING]
        assert torch.equal(tokens, tokens.sort().values)


@given(st.integers(1, 4096).map(lambda n: 64 * n))
def test_short_rows_have_documents_too(length):
    edges = document_edges(length)
    assert edges[0] == 0
    assert edges[-1] == length
    assert all(a < b for a, b in itertools.pairwise(edges))


class _Known:
    """A race whose seconds and GiB are given."""

    def __init__(self, figures):
        self._figures = figures

    def over(self, task, contestants):
        return {
            each: Figures(seconds / 4, 3 * seconds / 4, gib, [0.0, 0.0], "cudnn")
            for each, (seconds, gib) in zip(contestants, self._figures, strict=True)
        }


@given(st.lists(st.tuples(st.floats(1, 9), st.floats(1, 9)), min_size=4, max_size=4))
def test_peers_are_compared_with_the_default_and_with_the_fastest(figures):
    its = [*contestants("same", False)[:2], *torch_contestants("same")]
    task = SimpleNamespace(length=64, mask="none", edges=None)
    said = io.StringIO()
    with redirect_stdout(said):
        found = block(Table(True), _Known(figures), task, "same", its)
        verdict(Table(True), found)
    rows = _cells(said.getvalue())
    best = min(figures[:2], key=lambda its: its[0])
    for row, (seconds, gib) in zip(rows[2:], figures[2:], strict=True):
        expected = [seconds / figures[0][0], figures[0][1] / gib, seconds / best[0], best[1] / gib]
        assert row[-4:] == [f"{x:.2f}" for x in expected]
    worst = [min(f[0] for f in figures[2:]) / own[0] for own in (figures[0], best)]
    lines = [x for x in said.getvalue().splitlines() if "every peer, no documents" in x]
    for line, value in zip(lines, worst, strict=True):
        assert f"{'yes' if value >= 1 else 'NO'}, {value:.2f} at the worst" in line
