"""What the ranks of a job tell each other in plain values, before and beside the work."""

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import torch.distributed as dist

from megatron_ultralong.program.difference import first_difference
from megatron_ultralong.program.errors import InputError, refused_file

Value = TypeVar("Value")


def every_rank(value: Value) -> list[Value]:
    """The values that all ranks gave, by rank, on every rank; before ranks meet, this one's."""
    if not dist.is_initialized():
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main_rank(work: Callable[[], Value], *, is_main: bool) -> Value:
    """What ``work`` returns on the main rank, on every rank; on others it is not called.

    Raises:
        InputError: on every rank the same, where ``work`` raised one or the disk refused.
    """
    found: tuple[Value | None, InputError | None] = (None, None)
    if is_main:
        try:
            found = work(), None
        except InputError as error:
            found = None, error
        except OSError as error:
            found = None, refused_file(error) or InputError(f"{error}")
    value, problem = every_rank(found)[0]
    if problem is not None:  # of its own kind: a job whose disk fails starts again
        raise problem
    return cast(Value, value)


def check_agreement(values: Mapping[str, object]) -> None:
    """Check that all ranks hold the same ``values``.

    Raises:
        InputError: on every rank, naming the first difference and the ranks that differ.
    """
    local = {name: str(value) for name, value in values.items()}
    everyone = every_rank(local)
    for name, value in everyone[0].items():
        differing = [rank for rank, other in enumerate(everyone) if other.get(name) != value]
        if differing:
            other = str(everyone[differing[0]].get(name))
            name, value, other = first_difference(name, value, other)
            raise InputError(
                f"ranks disagree on {name}: rank 0 has {value}, rank {differing[0]} has "
                f"{other} (ranks that differ from rank 0: "
                f"{differing}); start every rank with the same arguments and the same files"
            )
