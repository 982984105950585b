"""What all ranks, and a run and its resume, must have the same of before the first step."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import megatron.core
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

import megatron_ultralong
from megatron_ultralong.checkpoint.disk.metadata import FILE_NAME, CheckpointMetadata, load_metadata
from megatron_ultralong.config.plain_values import flat_fields
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_json
from megatron_ultralong.program.rank_values import every_rank
from megatron_ultralong.training.config_file import CONFIG_FILE, load_config, with_absolute_paths
from megatron_ultralong.training.optimizer import adam_name

DATA_FILE = "data.json"
"""What the rows are, as :attr:`RunInputs.agreed` has it."""
_UNKNOWN = "nothing"

_FIXED = (
    *("global_batch_size", "data.seed", "data.seq_length", "data.document_mask"),
    "data.reset_position_ids",
    *(f"rope.{field.name}" for field in dataclasses.fields(RopeConfig)),
)
"""What a resumed run cannot change: the rows it has consumed, and what its weights mean."""


def check_same_run(
    root: Path, config: TrainingConfig, metadata: CheckpointMetadata, data: Mapping[str, str]
) -> TrainingConfig:
    """Compare a start with the one before in its folder ``root``, and return that one's.

    Args:
        root: folder of the run, with checkpoints.
        config: of this start.
        metadata: of the checkpoints that it is to write.
        data: what its rows are, by name.

    Raises:
        InputError: it is another run.
    """
    if not (root / CONFIG_FILE).is_file():
        raise InputError(
            f"--save {root} holds checkpoints but no {CONFIG_FILE}: it is not a run's folder, so "
            "it is not written to; name an empty or new folder"
        )
    before = load_config(root / CONFIG_FILE, type(config))
    for field in _FIXED:
        old, new = (operator.attrgetter(field)(one) for one in (before, config))
        if old != new:
            name = field.split(".")[-1]
            raise InputError(
                f"--save {root} holds a run with {name} {old}, this one has {new}: a resumed "
                f"run keeps its {name}; use {old}, or another --save for a new run"
            )
    _check_same_rows(root / DATA_FILE, data)
    found, made = flat_fields(load_metadata(root)), flat_fields(metadata)
    for name in {**found, **made}:
        if found.get(name) != made.get(name):
            raise InputError(
                f"--save {root} holds checkpoints of another model: {name} is "
                f"{_short(str(found.get(name)))} in {root / FILE_NAME}, and "
                f"{_short(str(made.get(name)))} in what --load {config.load} makes; name "
                "the --load of before, or another --save for a new run"
            )
    return before


def changes(before: TrainingConfig, now: TrainingConfig) -> list[str]:
    """Fields that differ: ``optimizer.lr was 3e-05, is 1e-05``."""
    before, now = with_absolute_paths(before), with_absolute_paths(now)
    old, new = flat_fields(dataclasses.replace(before, save=now.save)), flat_fields(now)
    return [
        f"{name} was {old[name]}, is {value}" for name, value in new.items() if old[name] != value
    ]


def _check_same_rows(path: Path, data: Mapping[str, str]) -> None:
    if not path.is_file():  # of a run that began before there was such a file
        return
    before = read_json(path, hint="remove it if the rows are those of the run")
    for name in [*before, *(name for name in data if name not in before)]:
        old, new = before.get(name, _UNKNOWN), data.get(name, _UNKNOWN)
        if old != new:
            raise InputError(
                f"--save {path.parent} holds a run over other rows: {name} was {_short(str(old))}, "
                f"is {_short(new)}; a resumed run continues in the rows that it began with: name "
                f"them with --data-path, or another --save for a new run with --load "
                f"{path.parent}"
            )


def _short(value: str) -> str:
    return value if len(value) <= 200 else value[:200] + "..."


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
