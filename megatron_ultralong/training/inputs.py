"""What a run that has been checked needs of this machine, and has the same of on all ranks."""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import megatron.core
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

import megatron_ultralong
from megatron_ultralong.attention.kernels import block_attention, math
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.mcore import cpu, elementwise
from megatron_ultralong.mcore.compat import check_layers
from megatron_ultralong.model import shape
from megatron_ultralong.plan import job, layer_memory
from megatron_ultralong.program.available_memory import available_memory
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.quantity import quantity
from megatron_ultralong.program.rank_values import every_rank
from megatron_ultralong.program.ranks import local_world_size
from megatron_ultralong.training import optimizer
from megatron_ultralong.training.telling.log import check_sinks


def check_attention(
    config: TrainingConfig,
    model: shape.ModelConfig,
    device: torch.device | None = None,
    memory_bytes: int | None = None,
) -> tuple[str, ...]:
    """What a user must know of the attention kernel that the run will get, in lines.

    Args:
        config: with its row length.
        model: shape of the model.
        device: to run on; None: the GPU of this process, if it has one.
        memory_bytes: of that device; None asks it.

    Raises:
        InputError: matrices of scores are larger than the device's memory.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda":
        return ()
    kernel = block_attention.resolve(optimizer.DTYPES[config.precision], model.kv_channels, device)
    if kernel is not math.MATH:
        return ()
    why = f"precision '{config.precision}' with {model.kv_channels} channels a head"
    note = layer_memory.score_matrix_note(config, model, why)
    if memory_bytes is None:
        memory_bytes = torch.cuda.get_device_properties(device).total_memory
    needed = layer_memory.HELD_AT_ONCE * layer_memory.score_matrix_bytes(config, model)
    if config.data.document_mask == "none" and needed > memory_bytes:
        raise InputError(
            f"{note.removeprefix('warning: ')}, and a GPU has {memory_bytes / 2**30:,.1f} GiB: use "
            "shorter rows, or a larger context_parallel_size"
        )
    return (note,)


def chosen_kernels(
    config: TrainingConfig, model: shape.ModelConfig
) -> tuple[dict[str, str], tuple[str, str]]:
    """What computes attention and elementwise work on this machine.

    Names, of which all ranks must have the same, and lines for a user, with what speaks against
    faster ones.

    Raises:
        InputError: one that is asked for cannot serve.
    """
    dtype, device = optimizer.DTYPES[config.precision], cpu.device()
    attention = block_attention.resolve(dtype, model.kv_channels, device)
    others = elementwise.choose(config.layers.elementwise_kernel, dtype, device)
    names = {
        "attention kernel": attention.name,
        "elementwise kernels": "compiled" if others.is_compiled else "torch",
    }
    said = block_attention.choice(dtype, model.kv_channels, device)
    if config.layers.attention == "te":
        names["attention kernel"] = said = "attention kernel: Transformer Engine's choice"
    return names, (said, str(others))


AVAILABLE_SHARE = 0.8
"""Of the host memory that is available at the start; checkpoints are staged in the rest."""


def host_buffers(
    config: TrainingConfig, model: shape.ModelConfig, num_ranks: int
) -> list[list[int]]:
    """Bytes of each buffer that a rank of each pipeline stage offloads into, all at once."""
    its = job.Job(model, config, num_ranks, mean_area=0)
    kept, parallel = its.kept(), config.parallel
    chunks = parallel.num_virtual_stages_per_pipeline_rank
    return [
        layers // chunks * parallel.passes_under_way(stage, its.num_microbatches) * kept
        for stage, layers in enumerate(parallel.stage_layers(model.num_layers))
    ]


def host_bytes(config: TrainingConfig, model: shape.ModelConfig, num_ranks: int) -> int:
    """Host memory that the ranks of the pipeline stage fill which keeps the most."""
    return max(sum(map(job.in_pages, sizes)) for sizes in host_buffers(config, model, num_ranks))


def check_offloading(config: TrainingConfig, model: shape.ModelConfig, num_ranks: int) -> int:
    """Bytes of host memory that this rank may take for offloaded activations; 0: it needs none.

    Raises:
        InputError: they do not fit.
    """
    if not config.memory.offload_activations:
        return 0
    local_ranks = local_world_size()
    limit = int(config.memory.max_host_memory_gib * 2**30)
    rule = f"max_host_memory_gib is {config.memory.max_host_memory_gib:g}"
    if not limit:
        available = available_memory()
        limit = int(AVAILABLE_SHARE * available / local_ranks)
        rule = (
            f"{AVAILABLE_SHARE:.0%} of the {_gib(available)} available here, shared by "
            f"{counted(local_ranks, 'rank')}, is {_gib(limit)}"
        )
    needed = host_bytes(config, model, num_ranks)
    if needed > limit:
        ways = ["raise context_parallel_size (more ranks)"]
        if config.memory.recompute_granularity == "keep_attention":
            ways.append("use recompute_granularity 'full', which keeps layer inputs alone")
        raise InputError(
            f"offload_activations needs {_gib(needed)} of host memory on each rank, and "
            f"{rule}: {', or '.join(ways)}"
        )
    return limit


def _gib(num_bytes: int) -> str:
    """In the unit of ``max_host_memory_gib``."""
    gib = num_bytes / 2**30
    return f"{gib:,.1f} GiB" if gib >= 1 else quantity(gib, "GiB")


def check_machine(config: TrainingConfig) -> None:
    """Check that the libraries here can do what is asked for, and that the weights can be read.

    Raises:
        InputError: they cannot.
    """
    check_sinks(config)
    check_layers(config.layers, deterministic=config.deterministic_mode, is_saved=bool(config.save))
    optimizer.check_optimizer(config.optimizer)
    # Before anything is built: memory is bounded by the weights that are there.
    MegatronCheckpoint(config.load, verify_checksums=config.checkpoint.verify_checksums)


@functools.cache
def code_version() -> dict[str, str]:
    """Versions of the code that decides on a run's numbers, ours by its bytes."""
    package = Path(megatron_ultralong.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return {
        "megatron_ultralong": f"{megatron_ultralong.__version__} {digest.hexdigest()[:12]}",
        "megatron.core": str(megatron.core.__version__),
        "torch": str(torch.__version__),
        "optimizer": optimizer.adam_name(),
    }


def check_weights(chunks: Sequence[torch.nn.Module], groups: ProcessGroupCollection) -> None:
    """Check that ranks which hold the same weights hold the same bits of them.

    Weights are the same on all data and context parallel ranks; those that are not split by tensor
    parallelism on these ranks too.

    Raises:
        InputError: on every rank, naming ranks that differ.
    """
    whole: list[torch.Tensor] = []
    parts: list[torch.Tensor] = []
    for parameter in (p for chunk in chunks for p in chunk.parameters()):
        is_split = getattr(parameter, "tensor_model_parallel", False)
        (parts if is_split else whole).append(parameter)
    tp, pp = groups.tp.rank(), groups.pp.rank()
    local = {
        f"pipeline stage {pp}, all tensor-parallel ranks": _digest(whole),
        f"pipeline stage {pp}, tensor-parallel rank {tp}": _digest(parts),
    }
    first: dict[str, tuple[int, str]] = {}
    for rank, digests in enumerate(every_rank(local)):
        for place, digest in digests.items():
            owner, expected = first.setdefault(place, (rank, digest))
            if digest != expected:
                raise InputError(
                    f"ranks {owner} and {rank} hold different weights ({place}: sha256 "
                    f"{expected[:12]} and {digest[:12]}): they have read different files, or one "
                    "machine's memory or disk is faulty; check --load and --save on both"
                )


def _digest(parameters: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for parameter in parameters:
        content = parameter.detach().to("cpu").contiguous().view(torch.uint8)
        digest.update(content.numpy())  # type: ignore[arg-type]
    return digest.hexdigest()
