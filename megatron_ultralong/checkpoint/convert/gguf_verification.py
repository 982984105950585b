"""Comparison of a GGUF file with the Megatron checkpoint that it was exported from."""

import tempfile
from pathlib import Path

import torch

from megatron_ultralong.checkpoint.convert.verification import (
    Comparison,
    convert_tensor,
    difference,
    differences_error,
    num_bytes,
)
from megatron_ultralong.checkpoint.disk.large_files import map_tensor
from megatron_ultralong.checkpoint.formats import gguf_file
from megatron_ultralong.checkpoint.formats.gguf_rope import DIVISORS
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.tensor_file import read_ahead
from megatron_ultralong.checkpoint.formats.weight_map import model_weights
from megatron_ultralong.model.parameters import num_parameters
from megatron_ultralong.program.errors import InputError, missing
from megatron_ultralong.program.progress import progress


def compare_gguf(
    source: MegatronCheckpoint, path: Path, dtype: torch.dtype | None = None
) -> Comparison:
    """Compare a GGUF file with what an export of ``source`` in ``dtype`` writes, bit for bit.

    Nothing in the file is parsed: its header is compared with the one that an export has, and
    tells then where the tensors are.

    Raises:
        InputError: there is no such file, or it differs; the message names what.
    """
    if not path.is_file():
        raise InputError(f"GGUF file {missing(path)}")
    contents = gguf_file.GgufContents(source, dtype)
    with tempfile.TemporaryDirectory() as folder:
        header = contents.header(Path(folder, "header"))
    offsets = contents.offsets(header)
    _check_header(path, header, contents)

    def read(name: str) -> torch.Tensor:
        info = contents.tensors[name]
        count = torch.Size(info.shape).numel()
        return map_tensor(path, offsets[name], info.dtype, count).reshape(info.shape)

    differences: dict[str, str | None] = {}
    if contents.divisors is not None:
        differences[DIVISORS] = difference(contents.divisors, read(DIVISORS))
    weights = model_weights(source.model)
    with progress("verify", num_bytes(source, dtype), "B") as bar:
        for weight, parts in read_ahead(weights, source.read):
            for name, part in zip(weight.names, parts, strict=True):
                there = gguf_file.gguf_name(name)
                wanted = convert_tensor(name, part, contents.tensors[there].dtype)
                wanted = gguf_file.stored(name, wanted, source.model)
                differences[there] = difference(wanted, read(there))
                bar.advance(wanted.nbytes)
            del parts, part, wanted
    found = [f"{name}: {what}" for name, what in differences.items() if what]
    if found:
        raise differences_error(found)
    return Comparison(len(differences), num_parameters(source.model))


def _check_header(path: Path, header: bytes, contents: gguf_file.GgufContents) -> None:
    size, least = path.stat().st_size, contents.num_bytes(header)
    if size < least:
        raise InputError(
            f"{path} has {size:,} bytes, and a GGUF file of this model at least {least:,}: it is "
            "cut short, of another dtype (--dtype), or of another model"
        )
    with path.open("rb") as file:
        found = file.read(len(header))
    if found == header:
        return
    first = next(i for i, pair in enumerate(zip(found, header, strict=True)) if pair[0] != pair[1])
    names = [*contents.values, *contents.tensors]
    places = {header.find(name.encode()): name for name in names}
    before = [place for place in sorted(places) if 0 <= place <= first]
    where = f"at {places[before[-1]]}" if before else "at its beginning"
    raise InputError(
        f"{path} differs from what an export of this checkpoint has, {where} (byte {first:,} of "
        f"{len(header):,} of metadata): it belongs to another model, dtype (--dtype) or tokenizer, "
        "or is damaged"
    )
