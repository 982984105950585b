"""Processes and their groups: what has to stand before a Megatron model can be built."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.mcore.cpu import cpu_backend, needs_cpu_backend
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranks import world_size


def virtual_pipeline_size(parallel: ParallelConfig) -> int | None:
    """Model chunks on every pipeline rank, None for one: Megatron then takes another schedule."""
    chunks = parallel.num_virtual_stages_per_pipeline_rank
    return chunks if chunks > 1 else None


@contextlib.contextmanager
def parallel_groups(parallel: ParallelConfig, seed: int) -> Iterator[ProcessGroupCollection]:
    """Start this rank's part of the job, and yield Megatron's process groups.

    Under torchrun all ranks take part; without it this process is a job of one. On leaving,
    everything that was started here is stopped again.

    Raises:
        InputError: the number of ranks does not divide into replicas, or torchrun is to restart
            ranks and cannot.
    """
    parallel.data_parallel_size(world_size())
    _check_restarts()
    with contextlib.ExitStack() as stack:
        stack.enter_context(cpu_backend())
        if not dist.is_initialized():
            _initialize_process_group(parallel.distributed_timeout_minutes)
            stack.callback(dist.destroy_process_group)
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
        yield ProcessGroupCollection.use_mpu_process_groups()


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
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(
            backend,
            timeout=timeout,
            store=dist.HashStore(),  # type: ignore[attr-defined]
            rank=0,
            world_size=1,
        )
