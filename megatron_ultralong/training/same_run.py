"""What all ranks must have the same of before the first step."""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import megatron.core
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

import megatron_ultralong
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.rank_values import every_rank
from megatron_ultralong.training.optimizer import adam_name


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
        "optimizer": adam_name(),
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
