"""A Megatron checkpoint as a source of Hugging Face tensors."""

import os
import re
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_ultralong.checkpoint.disk import checksums, metadata
from megatron_ultralong.checkpoint.disk.folder import resolve
from megatron_ultralong.checkpoint.formats.torch_dist import (
    TorchDistReader,
    check_iteration,
    check_objects,
)
from megatron_ultralong.checkpoint.formats.weight_map import Shape, Weight, model_weights
from megatron_ultralong.program import rank_values, ranks
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import ClosedFileError, InputError
from megatron_ultralong.program.progress import progress

_DATA_SUFFIX = ".distcp"
_SHOWN_BYTES = 4 * 2**30
"""From which on the reading of a checkpoint shows its progress."""
_MAX_THREADS = 8


def listed_files(folder: Path) -> checksums.Checksums | None:
    """What the files of a ``release`` or ``iter_XXXXXXX`` folder must be; None: nobody wrote it.

    All but the tensors' files are compared here, and the sizes of those.

    Raises:
        InputError: a file is missing or not as it was written.
    """
    if not (folder / checksums.FILE_NAME).is_file():
        return None
    try:
        listed = checksums.read_checksums(folder)
        small = [name for name in listed if not name.endswith(_DATA_SUFFIX)]
        checksums.check_files(folder, listed, small)
    except checksums.DamagedError as error:
        raise _refused(error) from error
    return listed


def _fault(error: InputError) -> str:
    """What it says is wrong, without the reason and the fix."""
    return re.split("[,;(]", str(error))[0].strip()


def check_tensors(folder: Path, listed: checksums.Checksums) -> None:
    """Compare the files of tensors with what :func:`listed_files` says, this rank its share; every
    rank calls it.

    Raises:
        InputError: a file is not as it was written; on every rank.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    names = [name for name in listed if name.endswith(_DATA_SUFFIX)]
    share = sum(listed[name].size for name in names) / world_size
    local = ranks.local_world_size(world_size)
    is_shown = rank == 0 and share >= _SHOWN_BYTES
    found: InputError | None = None
    try:
        with progress("checksums", share, "B") if is_shown else nullcontext() as bar:
            checksums.check_files(
                *(folder, listed, names),
                rank=rank,
                world_size=world_size,
                num_threads=min(_MAX_THREADS, (os.cpu_count() or 1) // local or 1),
                advance=bar.advance if bar else None,
            )
    except checksums.DamagedError as error:
        found = _refused(error)
    first = next((error for error in rank_values.every_rank(found) if error), None)
    if first is not None:
        raise first


def _refused(error: checksums.DamagedError) -> InputError:
    return checksums.refused(
        error,
        "copy the checkpoint again, or go back to an earlier one (--no-verify-checksums reads it "
        "as it is)",
    )


class MegatronCheckpoint:
    """One iteration of a checkpoint folder that carries ``ultralong.json``."""

    format = "Megatron torch_dist"

    def __init__(
        self, folder: str | Path, iteration: int | None = None, *, verify_checksums: bool = True
    ) -> None:
        """Check everything but the tensors' bytes: files, objects, every weight's key and shape.

        Without an ``iteration`` it is the latest.

        Raises:
            InputError: not a checkpoint of this project, damaged, it would run code, or its
                weights do not fit its metadata.
        """
        self.path, self.iteration = resolve(folder, iteration)
        self.root = self.path.parent
        self.source_folder = self.root / metadata.SOURCE_FOLDER
        self.metadata = metadata.load_metadata(self.root)
        self.model, self.rope_scaling = self.metadata.model, self.metadata.rope_scaling
        self._verify_checksums = verify_checksums
        self._is_checked = False
        self._checksums: checksums.Checksums | None = None
        damage = None
        try:
            if verify_checksums:
                self._checksums = listed_files(self.path)
        except ClosedFileError:
            raise
        except InputError as error:  # by the sizes of the files and the bytes of the small ones
            damage = error
        try:
            self.tensors = TorchDistReader(self.path)
            if ranks.is_main_rank():  # the others read no object that is not vetted as it is read
                check_objects(self.path, self.tensors.metadata)
                check_iteration(self.path, self.tensors.metadata)
        except InputError as error:
            if damage is None or _fault(damage) == _fault(error):
                raise
            raise InputError(f"{error}; {damage}") from error  # what it did, and why
        if damage is not None:
            raise damage
        self._locations = {weight: self._locate(weight) for weight in model_weights(self.model)}
        self._check_tied()
        self._check_padding()

    def check_tensors(self) -> None:
        """Compare the tensors' bytes with what was written, or say that nobody does.

        Every rank calls it, and reads its share.

        Raises:
            InputError: a file is not as it was written; on every rank.
        """
        if not self._verify_checksums:
            tell(f"warning: --no-verify-checksums: the bytes of {self.path} are read unchecked")
        elif self._checksums is None:
            tell(f"warning: {self.path} has no checksums.json: its bytes are read unchecked")
        elif not self._is_checked:
            check_tensors(self.path, self._checksums)
        self._is_checked = True

    def dtype(self, weight: Weight) -> torch.dtype:
        """Dtype that ``weight`` is stored in."""
        key = self._locations[weight][0][0]
        return self.tensors.tensors[key].properties.dtype

    def read(self, weight: Weight) -> tuple[torch.Tensor, ...]:
        """The Hugging Face parts of ``weight``."""
        return weight.split(self.read_fused(weight))

    def read_fused(self, weight: Weight) -> torch.Tensor:
        """Megatron's tensor ``weight``, of one layer."""
        regions = [self.tensors.read(*region) for region in self._locations[weight]]
        tensor = regions[0] if len(regions) == 1 else torch.cat(regions)
        return tensor.reshape(weight.shape)

    def _locate(self, weight: Weight) -> list[tuple[str, Shape, Shape]]:
        """Key, start and shape of the regions that hold ``weight``, one below the other.

        Megatron-Core stacks the layers under one key, or keys them one by one, and then keeps the
        gate (``_w``) and up (``_v``) halves of an MLP apart.
        """
        key, shape, half = weight.unstacked_key, weight.shape, weight.shapes[0]
        places: list[list[tuple[str, Shape, Shape, Shape]]] = [
            [(weight.key, *weight.stacked(self.model.num_layers))],
            [(key, (0,) * len(shape), shape, shape)],
        ]
        if weight.layout == "gate_up":
            places.append([(key + end, (0, 0), half, half) for end in ("_w", "_v")])
        for place in places:
            if all(name in self.tensors.tensors for name, *_ in place):
                for name, _, _, whole in place:
                    self._check_shape(weight, name, whole)
                return [region[:3] for region in place]
        raise InputError(
            f"{self.path} holds no tensor {weight.key}: it is not the model that "
            f"{self.root / 'ultralong.json'} describes"
        )

    def _check_shape(self, weight: Weight, key: str, expected: tuple[int, ...]) -> None:
        self.tensors.check_complete(key)
        found = tuple(self.tensors.tensors[key].size)
        # Megatron pads the vocabulary with rows that no token reads
        padded = weight.layer is None and len(expected) == 2 and found[0] >= expected[0]
        if found != expected and not (padded and found[1:] == expected[1:]):
            raise InputError(
                f"{self.path}: tensor {key} has shape {list(found)}, "
                f"{self.root / 'ultralong.json'} makes it {list(expected)}: weights and "
                "metadata belong to different models"
            )

    def _check_padding(self) -> None:
        """Megatron pads embedding and output alike; rows behind the vocabulary are not read."""
        known = self.tensors.tensors
        keys = ("embedding.word_embeddings.weight", "output_layer.weight")
        rows = {key: known[key].size[0] for key in keys if key in known}
        if len(set(rows.values())) > 1:
            raise InputError(
                f"{self.path}: {' and '.join(f'{key} has {n} rows' for key, n in rows.items())}, "
                f"of a vocabulary of {self.model.vocab_size}: Megatron pads both alike, so which "
                "of them are the model's is not known; save the checkpoint again"
            )

    def _check_tied(self) -> None:
        tied = not self.model.untie_embeddings_and_output_weights
        if tied and "output_layer.weight" in self.tensors.tensors:
            raise InputError(
                f"{self.path} holds output_layer.weight, but its metadata says that embedding and "
                "output share their weights (untie_embeddings_and_output_weights false): weights "
                "and metadata belong to different models"
            )
