"""Contestants in turns over one row: seconds, memory and errors of each."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from statistics import median

import torch
import torch.distributed as dist

from .agreement import Agreement, AttemptError
from .contest import Contestant, Groups, Result, Task, gib, local, slowest
from .exact_rows import ExactRows, some_rows
from .measurement import timed

MAX_ERROR = {torch.bfloat16: 0.1, torch.float32: 1e-4}  # beyond it, something else was computed
NO_MEMORY = float("nan")  # of a device that does not count


@dataclasses.dataclass(frozen=True)
class Call:
    """One forward and backward pass on this rank."""

    seconds: tuple[float, float]
    """Of forward and of backward."""
    gib: float
    """At the peak of both, beyond inputs and results."""
    wall: float
    """Seconds of it all, what goes before included."""
    result: Result


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of a contestant over one row: medians of its turns, the slowest and the fullest rank's."""

    forward: float
    backward: float
    gib: float
    errors: list[float]
    kernel: str

    @property
    def seconds(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


class SkippedError(Exception):
    """A row would take more time than is left; the message says so."""


class Clock:
    """Seconds that are left of the whole run, the same on all ranks."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """By the watch of rank 0."""
        found = torch.tensor([self._end - time.monotonic()], dtype=torch.float64)
        dist.broadcast(found, 0)
        return found.item()


def one_call(task: Task, contestant: Contestant) -> Call:
    """Forward and backward, each started together on all ranks."""
    start = time.perf_counter()
    device, is_cuda = task.groups.device, task.groups.device.type == "cuda"
    *inputs, dout = local(task, contestant)
    for x in inputs:
        x.requires_grad_()
    contestant.prepare(task)
    with contestant.running(task):
        task.groups.meet()
        before = 0
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        out, forward = timed(lambda: contestant.attention(task, *inputs))
        task.groups.meet()
        gradients, backward = timed(lambda: torch.autograd.grad(out, inputs, dout))
    results = (out.detach(), *gradients)
    peak = NO_MEMORY
    if is_cuda:
        peak = (torch.cuda.max_memory_allocated(device) - before) / 2**30 - gib(results)
    out, dq, dk, dv = (contestant.returned(x) for x in results)
    wall = time.perf_counter() - start
    return Call((forward, backward), peak, wall, (out, dq, dk, dv))


def _checked(agreement: Agreement, task: Task, contestant: Contestant, exact: ExactRows) -> Call:
    """The first call over a row, if it computes attention.

    Raises:
        AttemptError: on all ranks.
    """
    call = agreement.attempt(lambda: one_call(task, contestant))
    found = exact.errors(call.result, contestant.positions(task))
    if not all(error <= MAX_ERROR[task.dtype] for error in found):  # a NaN is none
        said = ", ".join(f"{error:.1e}" for error in found)
        raise AttemptError(f"it computes something else: relative errors {said}")
    return call


def able(
    agreement: Agreement, task: Task, first: Contestant, exact: ExactRows
) -> tuple[Contestant, list[float]]:
    """The first alternative that computes attention, and errors of out, dq, dk and dv.

    Raises:
        AttemptError: none does; with the reason of each.
    """
    reasons: dict[str, None] = {}
    for contestant in first.alternatives(task):
        try:
            agreement.attempt(lambda it=contestant: it.check(task), sends=False)  # type: ignore[misc]
            call = _checked(agreement, task, contestant, exact)
        except AttemptError as error:
            reasons[str(error)] = None
            continue
        return contestant, exact.errors(call.result, contestant.positions(task))
    raise AttemptError("; then ".join(reasons))


class Race:
    """Rows of growing lengths, with as many turns as there is time for."""

    def __init__(
        self, agreement: Agreement, groups: Groups, clock: Clock, repeat: int, rows: int
    ) -> None:
        """``repeat``: turns at the most; ``rows``: how many of out and dq are compared."""
        self._agreement, self._groups, self._clock = agreement, groups, clock
        self._repeat, self._rows = repeat, rows
        self._known: dict[int, tuple[float, int]] = {}
        """Wall seconds of a contestant's last call, and the area of its mask."""
        self.dropped: dict[int, str] = {}
        """Contestants that have failed at some length, by ``id``, and why."""

    def over(
        self, task: Task, contestants: Sequence[Contestant]
    ) -> dict[Contestant, Figures | str]:
        """Figures, or why there are none.

        Raises:
            SkippedError: one turn beside the first calls would take more than is left.
        """
        running = [each for each in contestants if id(each) not in self.dropped]
        if not running:
            return {each: self.dropped[id(each)] for each in contestants}
        turns = self._turns(task, running)
        exact = some_rows(task, min(self._rows, task.length))
        errors: dict[int, list[float]] = {}
        calls: dict[int, list[tuple[float, ...]]] = {id(each): [] for each in running}
        for turn in range(1 + turns):  # the first of a length builds plans, and does not count
            for each in running:
                if id(each) in self.dropped:
                    continue
                call = self._call(task, each, exact if turn == 0 else None)
                if call is None:
                    continue
                if turn == 0:
                    errors[id(each)] = exact.errors(call.result, each.positions(task))
                else:
                    calls[id(each)].append((*call.seconds, call.gib))
        return {
            each: self.dropped[id(each)]
            if id(each) in self.dropped
            else _figures(calls[id(each)], errors[id(each)], each.kernel_name(task))
            for each in contestants
        }

    def _call(self, task: Task, contestant: Contestant, exact: ExactRows | None) -> Call | None:
        """None: it has failed, and takes part no more."""
        try:
            if exact is None:
                call = self._agreement.attempt(lambda: one_call(task, contestant))
            else:
                call = _checked(self._agreement, task, contestant, exact)
        except AttemptError as error:
            self.dropped[id(contestant)] = f"{error} (at {task.length:,} tokens)"
            return None
        self._known[id(contestant)] = (slowest([call.wall])[0], task.area)
        return call

    def _turns(self, task: Task, contestants: list[Contestant]) -> int:
        """Turns that fit into half of what is left, one at the least."""
        if not all(id(each) in self._known for each in contestants):
            for _ in range(2):  # the second is one without plans and kernels to be made
                self._call(task, contestants[0], None)
        known = [self._known[id(each)] for each in contestants if id(each) in self._known]
        if not known:
            return 1
        seconds = sum(wall * task.area / area for wall, area in known)
        seconds *= len(contestants) / len(known)
        left = self._clock.left()
        if 2 * seconds > left:
            raise SkippedError(
                f"skipped: two turns of {len(contestants)} contestants would take about "
                f"{2 * seconds:.0f} s, and {max(left, 0.0):.0f} s are left: raise --seconds, or "
                "name fewer with --contestants"
            )
        return max(1, min(self._repeat, int(left / 2 / seconds) - 1))


def _figures(calls: list[tuple[float, ...]], errors: list[float], kernel: str) -> Figures:
    seconds, backwards, peaks = zip(*calls, strict=True)
    forward, backward, peak = slowest([median(seconds), median(backwards), max(peaks)])
    return Figures(forward, backward, peak, errors, kernel)
