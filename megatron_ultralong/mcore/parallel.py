"""Processes and their groups, which stand before a Megatron model is built, and work in them."""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.mcore.cpu import cpu_backend, needs_cpu_backend
from megatron_ultralong.mcore.float32 import whole_products
from megatron_ultralong.mcore.static_step import drop_graphs
from megatron_ultralong.program.errors import InputError, PassingError, counted
from megatron_ultralong.program.ranks import number_of, world_size


def virtual_pipeline_size(parallel: ParallelConfig) -> int | None:
    """Model chunks on every pipeline rank, None for one: Megatron then takes another schedule."""
    chunks = parallel.num_virtual_stages_per_pipeline_rank
    return chunks if chunks > 1 else None


def broadcast(values: Tensor, group: dist.ProcessGroup, rank: int) -> Tensor:
    """The ``values`` of one rank of a group, on all of them; -1 is the last rank."""
    if group.size() > 1:
        source = dist.get_global_rank(group, rank % group.size())
        dist.broadcast(values, src=source, group=group)
    return values


@torch.no_grad()
def last_stage_output(
    model: Any, tokens_BS: Tensor, positions_BS: Tensor, cp_size: int
) -> Tensor | None:
    """What the model returns without labels, through all pipeline stages; None but on the last.

    Args:
        model: this rank's part, in evaluation mode.
        tokens_BS: token ids of one micro-batch, [b, s_local].
        positions_BS: of the tokens.
        cp_size: context-parallel ranks, by whose number stages divide the length that they hand on.
    """

    def forward_step(
        batches: Iterator[tuple[Tensor, Tensor]], model: Any
    ) -> tuple[Tensor, Callable[..., Any]]:
        def report(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            zero = output.new_zeros(())
            return zero, zero.int(), output

        return model(*next(batches), None), report

    num_rows, length = tokens_BS.shape
    reports: list[Tensor] = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter([(tokens_BS, positions_BS)]),
        model=model,
        num_microbatches=1,
        seq_length=length * cp_size,
        micro_batch_size=num_rows,
        forward_only=True,
    )
    return reports[0] if reports else None


@contextlib.contextmanager
def joined_ranks(parallel: ParallelConfig) -> Iterator[None]:
    """Inside, the ranks of this job have met: all enter it, and it may be entered again within.

    Raises:
        InputError: as :func:`parallel_groups`.
    """
    parallel.data_parallel_size(world_size())
    _check_restarts()
    with contextlib.ExitStack() as stack:
        stack.enter_context(cpu_backend())
        if not dist.is_initialized():
            _initialize_process_group(parallel.distributed_timeout_minutes)
            stack.callback(dist.destroy_process_group)
        yield


@contextlib.contextmanager
def parallel_groups(parallel: ParallelConfig, seed: int) -> Iterator[ProcessGroupCollection]:
    """Start this rank's part of the job, and yield Megatron's process groups.

    Under torchrun all ranks take part; without it this process is a job of one. On leaving,
    everything that was started here is stopped again.

    Raises:
        InputError: the number of ranks does not divide into replicas, or torchrun is to restart
            ranks and cannot.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(joined_ranks(parallel))
        stack.enter_context(whole_products())
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor_model_parallel_size,
            pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=virtual_pipeline_size(parallel),
            context_parallel_size=parallel.context_parallel_size,
            distributed_timeout_minutes=parallel.distributed_timeout_minutes,
            create_gloo_process_groups=False,
        )
        stack.callback(_destroy_model_parallel)
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
        groups = ProcessGroupCollection.use_mpu_process_groups()
        if parallel.cp_comm_type == "a2a+p2p":
            groups.hcp = [_neighbours(parallel, level) for level in (0, 1)]
            for group in groups.hcp:
                stack.callback(dist.destroy_process_group, group)
        stack.callback(drop_graphs)
        yield groups


def _neighbours(parallel: ParallelConfig, level: int) -> dist.ProcessGroup:
    """The group of this rank among those that exchange heads (0), or of the ring between (1).

    Megatron-Core makes the same ones with einops, which its package does not install. Ranks are
    numbered tensor, context, data, pipeline parallel.
    """
    found: dist.ProcessGroup | None = None
    ranks = torch.arange(world_size()).view(
        -1, parallel.ring_ranks, parallel.head_ranks, parallel.tensor_model_parallel_size
    )
    for row in ranks.movedim(2 - level, -1).flatten(0, -2).tolist():
        group = dist.new_group(
            row, timeout=datetime.timedelta(minutes=parallel.distributed_timeout_minutes)
        )
        if dist.get_rank() in row:
            found = group
    assert found is not None
    return found


def _destroy_model_parallel() -> None:
    """Megatron's function forgets its groups; each keeps threads that wake 100 times a second."""
    groups = list(parallel_state._global_process_group_list or [])
    parallel_state.destroy_model_parallel()
    for group in groups:
        if group is not None:  # the default group, which is not Megatron's
            dist.destroy_process_group(group)


def _check_restarts() -> None:
    """Refuse a torchrun whose restarts fail: ranks would meet in the store of those before them.

    They would read addresses of processes that are gone (pytorch issues 135712 and 167288).
    """
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts != "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise InputError(
            f"torchrun is to restart ranks (--max-restarts {restarts}) and shares one store "
            "between starts, where restarted ranks find addresses of dead ones: export "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun, and start it with --standalone "
            "or --rdzv-backend c10d"
        )


def _initialize_process_group(timeout_minutes: float) -> None:
    timeout = datetime.timedelta(minutes=timeout_minutes)
    backend = "gloo"
    if not needs_cpu_backend():
        backend = "nccl"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "RANK" in os.environ:
        try:
            dist.init_process_group(backend, timeout=timeout)
        except (RuntimeError, ValueError, TypeError) as error:
            raise _apart(error) from error
    else:
        dist.init_process_group(
            backend,
            timeout=timeout,
            store=dist.HashStore(),  # type: ignore[attr-defined]
            rank=0,
            world_size=1,
        )


def _apart(error: Exception) -> PassingError:
    """What is told where the ranks of a job do not find each other, as torch says in a trace."""
    reason = str(error).split("\n")[0].rstrip(".")
    return PassingError(
        f"rank {number_of('RANK')} of {counted(world_size(), 'rank')} does not meet the others at "
        f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} (MASTER_ADDR and "
        f"MASTER_PORT; {reason}): start all ranks within --distributed-timeout-minutes, name the "
        "host of rank 0 as every host knows it, and a port that nothing else has there"
    )
