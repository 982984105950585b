"""Writers of whole models in the formats of other programs, from a Megatron checkpoint."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong import __version__
from megatron_ultralong.checkpoint.convert import small_files
from megatron_ultralong.checkpoint.convert.verification import convert_tensor
from megatron_ultralong.checkpoint.formats import gguf_file, hugging_face_config, meta, meta_writer
from megatron_ultralong.checkpoint.formats.hugging_face import SafetensorsWriter
from megatron_ultralong.checkpoint.formats.kind import PARAMS_FILE
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.models import DiskModel
from megatron_ultralong.checkpoint.formats.tensor_file import TensorInfo, read_ahead
from megatron_ultralong.checkpoint.formats.tokenizer_files import TokenizerFiles
from megatron_ultralong.checkpoint.formats.weight_map import WeightSource, model_weights
from megatron_ultralong.program.aside import files_in
from megatron_ultralong.program.journal import Journal
from megatron_ultralong.program.progress import progress


def write_hugging_face(
    source: MegatronCheckpoint,
    folder: Path,
    journal: Journal,
    dtype: torch.dtype | None,
    max_shard_size: int,
    merges: str = "keep",
) -> dict[str, list[str]]:
    """Write ``source`` as a Hugging Face folder, without the tensors that ``journal`` has.

    Returns what was changed in the source's small files, by file.

    Raises:
        InputError: no rope block can express its rotary embedding, or a small file is damaged.
    """
    tokenizer = TokenizerFiles(source.source_folder)
    if merges == "strings":
        tokenizer.check_string_merges()
    # of most weights: an enlarged embedding may be saved in another, and all are read in it
    sizes: Counter[torch.dtype] = Counter()
    for weight in model_weights(source.model):
        sizes[dtype or source.dtype(weight)] += weight.numel
    ((main_dtype, _),) = sizes.most_common(1)
    config = hugging_face_config.read_config(source.source_folder)
    values = hugging_face_config.export_config(config, source.metadata, main_dtype)
    tensors = _tensors(source, dtype)
    writer = SafetensorsWriter(folder, tensors, max_shard_size)
    _write_weights(source, writer, journal, dict(tensors))
    writer.finish()
    positions = source.model.max_position_embeddings
    changes = small_files.restore(source.source_folder, folder, tokenizer, positions, merges)
    hugging_face_config.write_config(folder, values)
    return changes


def write_meta(
    source: MegatronCheckpoint,
    folder: Path,
    journal: Journal,
    dtype: torch.dtype | None,
    num_shards: int,
) -> None:
    """Write ``source`` as a Meta folder, without the tensors that ``journal`` has.

    Raises:
        InputError: Meta's code has no such model, or it does not divide into the shards.
    """
    kept = source.source_folder / PARAMS_FILE
    params = meta.read_params(source.source_folder) if kept.is_file() else {}
    meta_writer.write_params(folder, source.metadata, params)
    tensors = _tensors(source, dtype)
    # With a tensor the files are on the disk in their final size.
    laid_out = bool(journal.entries)
    writer = meta_writer.MetaWriter(folder, tensors, source.model, num_shards, laid_out=laid_out)
    _write_weights(source, writer, journal, dict(tensors))
    small_files.restore_meta(source.source_folder, folder)


def write_gguf(
    source: MegatronCheckpoint, folder: Path, journal: Journal, dtype: torch.dtype | None
) -> None:
    """Write ``source`` as a GGUF file in ``folder``, without the tensors that ``journal`` has.

    Raises:
        InputError: llama.cpp has no such tokenizer, or the package ``gguf`` is not there.
    """
    contents = gguf_file.GgufContents(source, dtype)
    tensors = {name: gguf_file.stored_info(info) for name, info in _tensors(source, dtype)}
    writer = gguf_file.GgufWriter(folder, contents, source.model)
    _write_weights(source, writer, journal, tensors)
    small_files.restore_licences(source.source_folder, folder)


def _tensors(source: WeightSource, dtype: torch.dtype | None) -> list[tuple[str, TensorInfo]]:
    """Hugging Face names of all weights in the order of writing."""
    return [
        (name, TensorInfo(dtype or source.dtype(weight), shape))
        for weight in model_weights(source.model)
        for name, shape in zip(weight.names, weight.shapes, strict=True)
    ]


def _write_weights(
    source: WeightSource,
    writer: SafetensorsWriter | meta_writer.MetaWriter | gguf_file.GgufWriter,
    journal: Journal,
    tensors: Mapping[str, TensorInfo],
) -> None:
    """Write what the journal does not have, in the dtypes that ``tensors`` states by name."""
    size = sum(info.num_bytes for info in tensors.values())
    with progress("export", size - journal.num_bytes, "B") as bar:
        left = [w for w in model_weights(source.model) if w.label not in journal.entries]
        for weight, parts in read_ahead(left, source.read):
            written = 0
            for name, part in zip(weight.names, parts, strict=True):
                tensor = convert_tensor(name, part, tensors[name].dtype)
                writer.write(name, tensor)
                written += tensor.nbytes
            del parts, part, tensor
            bar.advance(written)
            journal.add(weight.label, {}, writer.sync, written)
    journal.flush(writer.sync)


def describe(action: str, source: DiskModel, **flags: object) -> dict[str, Any]:
    """Source, flags and programs of a conversion, as JSON values.

    A source file is known by its size and the time of its last change.
    """
    folder = source.path if isinstance(source, MegatronCheckpoint) else source.folder
    # The output may be a folder in it, and changes meanwhile.
    states = {f"file {path.name}": path.stat() for path in files_in(folder)}
    return {
        "action": action,
        "source": str(folder.resolve()),
        **flags,
        **{name: [state.st_size, state.st_mtime_ns] for name, state in states.items()},
        "megatron_ultralong": __version__,
        # its torch.save lays the files out
        "torch": torch.__version__,
    }
