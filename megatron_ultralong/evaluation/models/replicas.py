"""A model that the main rank alone asks; the others take part, and replicas share the rows."""

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from typing import Any

import torch.distributed as dist

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranks import is_main_rank

_FOR_EVER = datetime.timedelta(days=3650)
"""The main rank may take its time between two calls, to read data or to run tests."""


class Replicas:
    """Calls of methods of ``work``, this rank's part, on every rank, by the main one.

    A method takes rows and arguments, and returns an answer for each row; all ranks of a replica
    get the same rows. Answers and arguments are pickled between the ranks of this job. ``groups``
    are Megatron's process groups; None: there is this process alone.
    """

    def __init__(self, work: Any, groups: Any) -> None:
        self._work = work
        self._number, self.num_replicas, self._is_first = 0, 1, True
        self._group: Any = None
        if groups is not None:
            self._number, self.num_replicas = groups.dp.rank(), groups.dp.size()
            self._is_first = not any(g.rank() for g in (groups.tp, groups.cp, groups.pp))
        if groups is not None and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=_FOR_EVER)

    def ask(self, method: str, rows: Sequence[Any], **arguments: Any) -> list[Any]:
        """Answers of ``rows``, in their order; the main rank calls it.

        Raises:
            InputError: some rank did.
        """
        self._send((method, rows, arguments))
        return self._answer(method, rows, arguments)

    @contextlib.contextmanager
    def asked(self) -> Iterator[bool]:
        """Whether this is the rank that asks; on the others all is done when this is entered.

        Raises:
            InputError: on the others, where the main rank left with one.
        """
        if not is_main_rank():
            while isinstance(call := self._receive(), tuple):
                self._answer(*call)
            if call:
                raise InputError(call)
            yield False
            return
        try:
            yield True
        except BaseException as error:
            self._send(str(error) if isinstance(error, InputError) else "the main rank has failed")
            raise
        self._send("")

    def _answer(self, method: str, rows: Sequence[Any], arguments: dict[str, Any]) -> list[Any]:
        share = -(-len(rows) // self.num_replicas)
        its = rows[self._number * share : (self._number + 1) * share]
        answer: Any = []
        try:
            answer = getattr(self._work, method)(its, **arguments) if its else []
        except InputError as error:  # as on every rank of this replica
            answer = str(error)
        answers = [(0, answer)]
        if self._group is not None:
            told = (self._number, answer) if self._is_first else None
            every = [None] * dist.get_world_size() if is_main_rank() else None
            dist.gather_object(told, every, dst=0, group=self._group)
            answers = sorted(filter(None, every or ()), key=lambda one: one[0])
        for _, answer in answers:
            if isinstance(answer, str) and is_main_rank():
                raise InputError(answer)
        return [one for _, its in answers for one in its]

    def _send(self, call: Any) -> None:
        if self._group is not None:
            dist.broadcast_object_list([call], src=0, group=self._group)

    def _receive(self) -> Any:
        call = [None]
        dist.broadcast_object_list(call, src=0, group=self._group)
        return call[0]
