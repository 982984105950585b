"""The optimizer's states to and from a checkpoint, by each rank those that it has.

Megatron-Core's ``fully_reshardable`` form stores them in the shapes of the weights, which any
layout can read. To write it, Megatron-Core gathers all states of a model-parallel group on each of
its data and context parallel ranks, through host memory and while training waits, and one of them
writes them all; to read it, every rank reads them all. What a rank has of a weight is a run of its
elements, and such a run is a few boxes of the weight: here each rank writes its own boxes, where
they are, and reads its own. The files hold the same tensors.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer

STATES = ("param", "exp_avg", "exp_avg_sq")
"""Of a weight, in float32, by Megatron-Core's names."""
Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes in an array."""


def boxes(shape: Sequence[int], begin: int, end: int) -> Iterator[Box]:
    """The boxes that elements ``begin`` to ``end`` of an array are, row by row, in their order.

    ``(4, 5), 3, 12 -> ((0, 3), (1, 2)), ((1, 0), (1, 5)), ((2, 0), (1, 2))``.
    """
    if begin >= end:
        return
    if len(shape) < 2:
        yield ((begin,), (end - begin,)) if shape else ((), ())
        return
    row = math.prod(shape[1:])
    first, last = -(-begin // row), end // row  # whole rows
    if first > last:
        yield from _in_row(shape, last, begin - last * row, end - last * row)
        return
    yield from _in_row(shape, first - 1, row - (first * row - begin), row)
    if first < last:
        rest = tuple(shape[1:])
        yield (first, *(0 for _ in rest)), (last - first, *rest)
    yield from _in_row(shape, last, 0, end - last * row)


def _in_row(shape: Sequence[int], row: int, begin: int, end: int) -> Iterator[Box]:
    for offsets, sizes in boxes(shape[1:], begin, end):
        yield (row, *offsets), (1, *sizes)


@contextlib.contextmanager
def own_shards(parts: Iterable[MegatronOptimizer]) -> Iterator[None]:
    """Let the distributed optimizers ``parts`` hand out and take their own shards meanwhile."""
    with contextlib.ExitStack() as stack:
        for part in parts:
            for name, replacement in (
                ("sharded_param_state_fully_reshardable", _shards),
                ("load_parameter_state_from_fully_reshardable", _take),
            ):
                assert hasattr(part, name), f"Megatron-Core's optimizer has no {name}"
                setattr(part, name, functools.partial(replacement, part))
                stack.callback(delattr, part, name)
        yield


def _ranges(part: Any) -> Iterator[tuple[torch.nn.Parameter, int, int]]:
    """Each weight that this rank has states of, and the elements of it that they are for."""
    for maps in part.gbuf_ranges:
        for buckets in maps.values():
            for bucket in buckets:
                for weight, places in bucket["param_map"].items():
                    yield weight, places["param"].start, places["param"].end


def _shards(
    part: Any, weights: dict[str, Any], is_loading: bool = False, metadata: Any = None
) -> dict[int, dict[str, list[ShardedTensor]]]:
    """By weight and state: the boxes. ``weights``: the sharded state of the model."""
    entries = {
        entry.data: entry
        for entry in nested_values(weights)
        if isinstance(entry, ShardedTensor | ShardedTensorFactory)
    }
    found = {}
    for index, (weight, begin, end) in enumerate(_ranges(part)):
        if is_loading:
            states = {name: torch.empty(end - begin) for name in STATES}
        else:
            states = part._get_main_param_and_optimizer_states(weight)
        found[index] = {
            name: _boxes_of(entries[weight], name, states[name].float(), begin, part)
            for name in STATES
        }
    return found


def _boxes_of(entry: Any, name: str, state: torch.Tensor, begin: int, part: Any) -> Any:
    """``state`` of the elements from ``begin`` on of the weight of ``entry``."""
    # A factory splits a weight: gate and up halves of an MLP.
    pieces = [entry] if isinstance(entry, ShardedTensor) else list(nested_values(entry.build()))
    state, end, result = state.detach().flatten(), begin + state.numel(), []
    for piece in pieces:
        data, axes = piece.data, piece.prepend_axis_num
        assert data.is_contiguous(), f"{piece.key} is not split along its first axis"
        start = data.storage_offset() - entry.data.storage_offset()
        low, high = max(begin, start), min(end, start + data.numel())
        at = low - begin
        for offsets, sizes in boxes(data.shape, low - start, high - start):
            count = math.prod(sizes)
            box = state[at : at + count].view((1,) * axes + sizes)
            at += count
            offsets = tuple(map(sum, zip(piece.global_offset, (0,) * axes + offsets, strict=True)))
            # Replicas of tensor-parallel ranks stay replicas; data-parallel ranks have others.
            replica = (*piece.replica_id[:2], part.distributed_optimizer_instance_id)
            result.append(
                dataclasses.replace(
                    piece,
                    key=f"optimizer.state.{name}.{piece.key}",
                    data=box,
                    dtype=box.dtype,
                    local_shape=tuple(box.shape),
                    global_offset=offsets,
                    axis_fragmentations=None,
                    prepend_axis_num=0,
                    replica_id=replica,
                )
            )
    return result


@torch.no_grad()
def _take(part: Any, loaded: dict[int, dict[str, list[torch.Tensor]]]) -> None:
    """Set the states from what :func:`_shards` has asked for."""
    for index, (weight, _, _) in enumerate(_ranges(part)):
        parts = ([box.flatten() for box in loaded[index][name]] for name in STATES)
        states = [torch.cat(each) if len(each) > 1 else each[0] for each in parts]
        part._set_main_param_and_optimizer_states(weight, dict(zip(STATES, states, strict=True)))
    if isinstance(part.optimizer, HybridDeviceOptimizer):
        part.optimizer._sync_hdo_state_to_sub_optimizers()
