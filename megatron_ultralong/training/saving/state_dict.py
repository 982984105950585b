"""What a checkpoint of a run holds: model, optimizer, schedule, random states and position.

The optimizer's states go to and from it by each rank those that it has. Megatron-Core's
``fully_reshardable`` form stores them in the shapes of the weights, which any layout can read. To
write it, Megatron-Core gathers all states of a model-parallel group on each of its data and context
parallel ranks, through host memory and while training waits, and one of them writes them all; to
read it, every rank reads them all. What a rank has of a weight is a run of its elements, and such a
run is a few boxes of the weight: here each rank writes its own boxes, where they are, and reads its
own. The files hold the same tensors.
"""

import contextlib
import dataclasses
import functools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from megatron.core.dist_checkpointing import mapping
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_ultralong.checkpoint.formats import model_state, torch_dist_writer
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.program.errors import InputError, counted

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
) -> dict[int, dict[str, list[mapping.ShardedTensor]]]:
    """By weight and state: the boxes. ``weights``: the sharded state of the model."""
    entries = {
        entry.data: entry
        for entry in nested_values(weights)
        if isinstance(entry, mapping.ShardedTensor | mapping.ShardedTensorFactory)
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
    is_whole = isinstance(entry, mapping.ShardedTensor)
    pieces = [entry] if is_whole else list(nested_values(entry.build()))
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


_SHARDING = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,
    "singleton_local_shards": False,
}
"""The optimizer's states are stored in the shapes of the weights: any layout can read them."""
_IDENTITY = ("wd_mult", "lr_mult", "is_expert_parallel", "is_decoupled_lr")
"""What tells groups of parameters apart in every release."""
_RATES = ("max_lr", "min_lr")


def _names(chunks: Sequence[DistributedDataParallel]) -> list[str]:
    """Megatron-LM's names for the parts of a model on a rank; no tensor is stored by them."""
    return ["model"] if len(chunks) == 1 else [f"model{index}" for index in range(len(chunks))]


def _sharded_state(
    chunks: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
    *,
    is_loading: bool,
) -> dict[str, Any]:
    # A copy each: Megatron adds process groups to the dictionary it is given.
    weights = {
        name: chunk.module.sharded_state_dict(metadata=dict(_SHARDING))
        for name, chunk in zip(_names(chunks), chunks, strict=True)
    }
    with own_shards(optimizer.chained_optimizers):
        states = optimizer.sharded_state_dict(
            weights, is_loading=is_loading, metadata=dict(_SHARDING)
        )
    for group in states["optimizer"]["param_groups"]:
        # The offloading optimizer names its classes there, and torch reads no file with classes.
        for name in [name for name, value in group.items() if isinstance(value, type)]:
            del group[name]
    return {**weights, "optimizer": states, "opt_param_scheduler": scheduler.state_dict()}


def prepare_torch_adam(parts: Iterable[MegatronOptimizer]) -> None:
    """Make states that can be loaded into, where Megatron runs torch's Adam (no Apex, no TE).

    torch's Adam keeps its step with the other states and makes them all in its first step;
    Megatron-Core stores the step once for all, and then misses it parameter by parameter.
    """
    for part in parts:
        inner = part.optimizer
        if isinstance(inner, HybridDeviceOptimizer) and not inner.state:
            inner.dummy_step()  # what it does to the weights is loaded over
        if not isinstance(inner, torch.optim.Adam | torch.optim.AdamW):
            continue
        for parameter in (p for group in inner.param_groups for p in group["params"]):
            inner.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        part._set_main_param_and_optimizer_states = functools.partial(
            _set_states_with_step, part, part._set_main_param_and_optimizer_states
        )


def _set_states_with_step(
    part: Any,
    set_states: Callable[[torch.nn.Parameter, dict[str, torch.Tensor]], None],
    model_parameter: torch.nn.Parameter,
    tensors: dict[str, torch.Tensor],
) -> None:
    group, place = part.model_param_group_index_map[model_parameter]
    parameter = part.optimizer.param_groups[group]["params"][place]
    set_states(model_parameter, {"step": part.optimizer.state[parameter]["step"], **tensors})


def separate_steps(parts: Iterable[MegatronOptimizer]) -> None:
    """Give every parameter of torch's Adam a step of its own.

    Megatron-Core loads one tensor into all of them, and every parameter would count it up: after
    one iteration Adam would take itself to be as many steps further as there are parameters.
    """
    for part in parts:
        for states in part.optimizer.state.values():
            for name, value in states.items():
                if not isinstance(value, torch.Tensor):
                    continue
                # One step for all, or a part of a tensor that is kept for its sake.
                if name == "step" or value.untyped_storage().nbytes() > value.nbytes:
                    states[name] = value.clone()
        if isinstance(part.optimizer, HybridDeviceOptimizer):
            part.optimizer._sync_sub_optimizers_state_to_hdo()


def checkpoint_state(
    chunks: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
    position: dict[str, Any],
    source: ModelConfig,
) -> dict[str, Any]:
    """The sharded state of a checkpoint, for :class:`Snapshot`; every rank calls it.

    ``position`` is where the run is, plain values with ``iteration`` among them; ``source`` is for
    Megatron-LM's ``--use-checkpoint-args``.
    """
    return {
        **_sharded_state(chunks, optimizer, scheduler, is_loading=False),
        "rng_state": _rng_shard(_rng_state()),
        "args": torch_dist_writer.megatron_args(source),
        "iteration": position["iteration"],
        "checkpoint_version": 3.0,
        "ultralong": {**position, "world_size": dist.get_world_size()},
        "content_metadata": dict(_SHARDING),
    }


def load_checkpoint(
    folder: Path,
    chunks: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
) -> dict[str, Any]:
    """Restore everything from ``folder`` (an ``iter_NNNNNNN``); returns the saved position.

    Any tensor, pipeline (virtual stages too), context and data parallel sizes can read it. The
    random states are each rank's own, and restored where as many ranks read as have written.

    Raises:
        InputError: it is damaged, would run code, or is not of a run of this project.
    """
    prepare_torch_adam(optimizer.chained_optimizers)
    asked = [_hyperparameters(group) for group in optimizer.param_groups]
    state = _sharded_state(chunks, optimizer, scheduler, is_loading=True)
    position = _position(model_state.load_common(folder), folder)
    as_many_ranks = position["world_size"] == dist.get_world_size()
    if as_many_ranks:
        state["rng_state"] = _rng_shard(None)
    strict = StrictHandling.RETURN_UNEXPECTED
    state, _, lacking = model_state.load_sharded(state, folder, strict=strict)
    lacking = model_state.without_extra_states(lacking)
    if lacking:
        raise InputError(
            f"{folder} lacks {counted(len(lacking), 'tensor')} of this run, {lacking[0]} first: "
            "it is of "
            "another model or optimizer; name another --save"
        )
    for name, chunk in zip(_names(chunks), chunks, strict=True):
        model_state.take_state(chunk.module, state[name])
    _take_rates(state["optimizer"]["optimizer"]["param_groups"], asked)
    with own_shards(optimizer.chained_optimizers):
        optimizer.load_state_dict(state["optimizer"])
    _gather_main_weights(chunks)
    separate_steps(optimizer.chained_optimizers)
    for group, values in zip(optimizer.param_groups, asked, strict=True):
        group.update(values)
    scheduler.load_state_dict(state["opt_param_scheduler"])
    if as_many_ranks:
        try:
            _set_rng_state(state["rng_state"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(f"{folder}: the random states are damaged ({error})") from error
    return position


def _gather_main_weights(chunks: Sequence[DistributedDataParallel]) -> None:
    """Give all ranks the float32 weights that the optimizer has read.

    A float32 model's weights are the optimizer's, a part on each rank. Those of a checkpoint that
    was trained in bf16 are rounded, and its optimizer's are not: each rank would have the other
    ranks' parts rounded.
    """
    for chunk in chunks:
        if any(parameter.dtype == torch.float32 for parameter in chunk.parameters()):
            chunk.start_param_sync(force_sync=True)


def _position(common: dict[str, Any], folder: Path) -> dict[str, Any]:
    position = common.get("ultralong")
    if not isinstance(position, dict) or any(
        type(position.get(name)) is not int for name in ("iteration", "world_size")
    ):
        raise InputError(
            f"{folder} does not say where its run was: it is not a checkpoint of `pretrain` or "
            "`sft`; begin from it with --load, with another --save"
        )
    return dict(position)


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    """What the configuration says of a group of parameters; a checkpoint brings the old values."""
    return {name: value for name, value in group.items() if name not in ("params", "step")}


def _take_rates(saved: list[dict[str, Any]], asked: list[dict[str, Any]]) -> None:
    """Give saved groups of parameters the rates of the groups that are to take their place.

    Megatron-Core 0.19 finds a saved group by its rates too, and would find none under another one.
    """
    for group in saved:
        for other in asked:
            if all(group.get(name) == other.get(name) for name in _IDENTITY):
                group.update({name: other[name] for name in _RATES if name in other})


def _rng_shard(state: dict[str, Any] | None) -> mapping.ShardedObject:
    return mapping.ShardedObject("rng_state", state, (dist.get_world_size(),), (dist.get_rank(),))


def _rng_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "random": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).copy()), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    kind, keys, *rest = state["numpy"]
    random.setstate(state["random"])
    np.random.set_state((kind, keys.numpy(), *rest))
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state(state["cuda"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["tracker"])
