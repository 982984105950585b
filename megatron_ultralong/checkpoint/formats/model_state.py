"""Weights of a Megatron checkpoint into this rank's part of a model, by readers that run nothing.

``dist_checkpointing`` unpickles ``.metadata`` by :mod:`pickle`, objects by ``torch.load`` with
``weights_only=False``, and ``common.pt`` as the release and an environment variable say. While
:func:`guarded` lasts, all three go through :mod:`megatron_ultralong.checkpoint.formats.pickles`.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.distributed.checkpoint import api, default_planner, filesystem
from torch.distributed.checkpoint.metadata import Metadata

from megatron_ultralong.checkpoint.disk.large_files import Window
from megatron_ultralong.checkpoint.disk.stored_iteration import COMMON_FILE
from megatron_ultralong.checkpoint.formats import megatron, pickles, torch_dist_metadata
from megatron_ultralong.checkpoint.formats.torch_dist import check_object, common_state
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.rope import AnglePrecision
from megatron_ultralong.mcore.model import build_model, transformer_config
from megatron_ultralong.mcore.recomputed_layer import Recomputation
from megatron_ultralong.program.errors import InputError, refused_file

_LOAD_BYTES = default_planner.DefaultLoadPlanner.load_bytes


def load_sharded(state: dict[str, Any], folder: Path, **arguments: Any) -> Any:
    """``dist_checkpointing.load`` of ``folder`` into ``state``; every rank calls it.

    Raises:
        InputError: a file is damaged, or would run code; on every rank.
    """
    try:
        with guarded():
            return dist_checkpointing.load(
                sharded_state_dict=state, checkpoint_dir=str(folder), **arguments
            )
    except InputError as error:
        if str(folder) in str(error):
            raise
        raise InputError(f"{folder}: {error}") from error


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Let whatever loads a checkpoint meanwhile, in this process, run nothing that is in it.

    Raises:
        InputError: a file is damaged, or would run code.
    """
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in (
            (torch, "load", _load),
            (filesystem.FileSystemReader, "read_metadata", _read_metadata),
            (default_planner.DefaultLoadPlanner, "load_bytes", _load_bytes),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        try:
            yield
        except api.CheckpointException as error:  # what the ranks had to say, gathered by torch
            causes = [failure[0] for failure in error.failures.values()]
            told = [refused_file(c) if isinstance(c, OSError) else c for c in causes]
            known = [cause for cause in told if isinstance(cause, InputError)]
            if known:
                raise known[0] from error
            raise InputError(
                f"the checkpoint cannot be loaded ({type(causes[0]).__name__}: {causes[0]}): its "
                "records are not what .metadata says; copy or write it again"
            ) from error


def _load(f: Any, *_: Any, **__: Any) -> Any:
    """``torch.load`` of a checkpoint: on the CPU, weights only, whatever it was asked for."""
    name = getattr(getattr(f, "base_stream", f), "name", f)
    try:
        if hasattr(f, "base_stream"):  # torch's view of a record in a file
            f = Window(f.base_stream, f.offset, f.len)
        if isinstance(f, str | Path):
            return _read_file(Path(f))
        return pickles.read_saved(f)
    except pickles.UnsafeError as error:
        where = name if isinstance(name, str | Path) else "a record of the checkpoint"
        raise InputError(
            f"{where} cannot be read as plain values ({error}): it is damaged or would run code; "
            "use a checkpoint from a source that you trust"
        ) from error


def _read_file(path: Path) -> Any:
    if path.name == COMMON_FILE and not path.exists():
        state = common_state(path.parent)  # releases before 0.19 look for the file alone
        if state is not None:
            return state
    return pickles.read_saved(path)


def _read_metadata(self: filesystem.FileSystemReader, *_: Any, **__: Any) -> Metadata:
    metadata = torch_dist_metadata.read_torch_dist_metadata(Path(self.path))
    for index, place in metadata.storage_data.items():
        if getattr(place, "transform_descriptors", None):  # it would be unpacked without bound
            raise InputError(
                f"{Path(self.path) / place.relative_path}: {index.fqn} is compressed by an "
                "extension of torch: write the checkpoint without it"
            )
    assert metadata.storage_meta is not None
    metadata.storage_meta.load_id = self.load_id
    metadata.storage_meta.checkpoint_id = str(self.path)  # where it is now, for messages
    return metadata


def _load_bytes(self: Any, read_item: Any, value: io.BytesIO) -> None:
    """Torch's own, after a look at what it is given: here its place is known."""
    place = self.metadata.storage_data[read_item.storage_index]
    path = Path(self.metadata.storage_meta.checkpoint_id) / place.relative_path
    check_object(value.getvalue(), read_item.storage_index.fqn, path)
    _LOAD_BYTES(self, read_item, value)


def load_common(folder: Path) -> dict[str, Any]:
    """What every rank has the same of in ``folder``.

    Raises:
        InputError: it is damaged, or would run code.
    """
    with guarded():
        state: dict[str, Any] = dist_checkpointing.load_common_state_dict(str(folder))
        return state


def load_weights(chunks: Sequence[GPTModel], checkpoint: megatron.MegatronCheckpoint) -> None:
    """Load the weights of a checkpoint into a model; every rank calls it.

    The layout that wrote them does not matter. Optimizer states in the folder are not loaded. Each
    byte of the folder is first compared with its checksum, on one of the ranks.
    A model without virtual stages is one chunk.

    Raises:
        InputError: a file is damaged, or would run code; on every rank.
    """
    checkpoint.check_tensors()
    state = load_sharded(  # all chunks at once: the ranks' shards cover every tensor
        {f"model{index}": _weights(chunk) for index, chunk in enumerate(chunks)}, checkpoint.path
    )
    for index, chunk in enumerate(chunks):
        take_state(chunk, state[f"model{index}"])


def load_model(
    checkpoint: megatron.MegatronCheckpoint,
    parallel: ParallelConfig,
    groups: ProcessGroupCollection,
    *,
    dtype: torch.dtype,
    angle_precision: AnglePrecision | None = None,
    tile_size: int = 4096,
) -> GPTModel:
    """The model of a checkpoint on this rank, in evaluation mode; every rank calls it.

    Args:
        checkpoint: opened; see :func:`load_weights`.
        parallel: the layout.
        groups: Megatron's process groups.
        dtype: of weights and activations.
        angle_precision: of the rotary angles; None: the checkpoint's own.
        tile_size: tokens that go through projections, MLP and output layer at a time; such a model
            makes no logits of its own. 0: all of them, and it makes logits.

    Raises:
        InputError: the model cannot be split this way, or a file is damaged; on every rank.
    """
    model, scaling = checkpoint.model, checkpoint.rope_scaling
    parallel.check_model(model)
    part = build_model(
        model,
        transformer_config(model, parallel, params_dtype=dtype, rope_scaling=scaling),
        groups,
        seq_length=model.max_position_embeddings,
        rope_scaling=scaling,
        angle_precision=angle_precision or checkpoint.metadata.angle_precision,
        recomputation=Recomputation(tile_size=tile_size) if tile_size else None,
        loss_tile_size=tile_size,
    ).to(dtype)
    load_weights([part], checkpoint)
    return part.eval()


def take_state(chunk: GPTModel, state: dict[str, Any]) -> None:
    """Hand a loaded state to a model; only ``_extra_state`` entries may be missing in it.

    Layers of Transformer Engine and of Megatron-Core have them in other places. They hold what
    FP8 with delayed scaling has learnt, and are empty otherwise.
    """
    result = chunk.load_state_dict(state, strict=False)
    missing = without_extra_states(result.missing_keys)
    assert not missing, f"weights not in the checkpoint: {missing}"


def without_extra_states(keys: Iterable[str]) -> list[str]:
    """The keys of weights and states, sorted."""
    return sorted(key for key in keys if "_extra_state" not in key)


def _weights(chunk: GPTModel) -> dict[str, Any]:
    wanted: dict[str, Any] = chunk.sharded_state_dict(metadata={"singleton_local_shards": False})
    # Empty `_extra_state` entries of a Transformer Engine layout are no weights.
    return {key: value for key, value in wanted.items() if not key.endswith("_extra_state")}
