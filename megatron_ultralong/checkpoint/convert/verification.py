"""Bit comparison of two models on disk, whatever their formats; of a GGUF file with its source."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_ultralong.checkpoint.disk.large_files import OpenFile
from megatron_ultralong.checkpoint.formats import gguf_file
from megatron_ultralong.checkpoint.formats.gguf_file import DIVISORS
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.meta import MetaFolder
from megatron_ultralong.checkpoint.formats.tensor_file import read_ahead
from megatron_ultralong.checkpoint.formats.weight_map import WeightSource, model_weights
from megatron_ultralong.checkpoint.logits.comparison import LogitsComparison
from megatron_ultralong.model.shape import num_parameters
from megatron_ultralong.model.yarn import attention_factor, in_words, inv_freq
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError, counted, missing
from megatron_ultralong.program.progress import progress

_OF_ROPE = (
    ". All tensors are equal: one was imported or trained with another --rope-scaling, or states "
    "another rope_theta"
)
_OF_BYTES = ". Convert again; if it happens again, test the disk and the memory"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Values of ``--dtype``."""
_NAMED = 8
"""Differing tensors that a message names."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was compared; every tensor was equal."""

    num_tensors: int
    num_parameters: int
    logits: LogitsComparison | None = None
    """Of what both models compute, where that was asked for."""


def convert_tensor(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """``tensor`` in ``dtype``, or as it is.

    Raises:
        InputError: a finite value has no finite neighbour in ``dtype``.
    """
    if dtype is None or tensor.dtype == dtype:
        return tensor
    converted = tensor.to(dtype)
    beyond = tensor[torch.isfinite(tensor) & ~torch.isfinite(converted)]
    if beyond.numel():
        raise InputError(
            f"tensor {name} has a value of magnitude {beyond.abs().max().item():.4g}, {dtype} "
            f"ends at {torch.finfo(dtype).max:.4g}: use bf16 or fp32"
        )
    return converted


def num_bytes(source: WeightSource, dtype: torch.dtype | None = None) -> int:
    """Bytes of all weights of ``source``, in ``dtype``."""
    weights = model_weights(source.model)
    return sum(weight.numel * (dtype or source.dtype(weight)).itemsize for weight in weights)


def compare(
    source: WeightSource, output: WeightSource, dtype: torch.dtype | None = None
) -> Comparison:
    """Compare every tensor of ``output`` with ``source`` converted to ``dtype``, bit for bit.

    Raises:
        InputError: the models differ; the message names the tensors and the first element.
    """
    _check_shapes(source, output)
    _check_dtypes(source, output, dtype)
    rope = _rope_differences(source, output)
    differences = list(rope)
    not_finite: list[str] = []
    weights = model_weights(source.model)
    pairs = read_ahead(weights, lambda weight: (source.read(weight), output.read(weight)))
    with progress("verify", num_bytes(source, dtype), "B") as bar:
        for weight, (wanted, got) in pairs:
            for name, expected, found in zip(weight.names, wanted, got, strict=True):
                if what := difference(convert_tensor(name, expected, dtype), found):
                    differences.append(f"{name}: {what}")
                if not torch.isfinite(found).all():
                    not_finite.append(name)
                bar.advance(found.nbytes)
            del wanted, got, expected, found
    if differences:
        raise differences_error(differences, _OF_ROPE if differences == rope else _OF_BYTES)
    if not_finite:
        names = ", ".join(not_finite[:_NAMED])
        tell(
            f"warning: NaN or infinite values in {counted(len(not_finite), 'tensor')} "
            f"({names}): such a model writes and learns nothing; take its weights "
            "from where they were finite"
        )
    return Comparison(sum(len(weight.names) for weight in weights), num_parameters(source.model))


def differences_error(differences: Sequence[str], way_out: str = _OF_BYTES) -> InputError:
    """The error of two models that differ, in what the texts name."""
    more = len(differences) - _NAMED
    return InputError(
        "the models differ in "
        + "; ".join(differences[:_NAMED])
        + (f"; and {more} more" if more > 0 else "")
        + way_out
    )


def difference(expected: torch.Tensor, found: torch.Tensor) -> str | None:
    """How two tensors differ in their bits: -0.0 is not 0.0, and a NaN equals itself."""
    if expected.dtype != found.dtype:
        return f"dtype {expected.dtype} against {found.dtype}"
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[expected.itemsize]
    expected_bits = expected.contiguous().view(integer)
    found_bits = found.contiguous().view(integer)
    if torch.equal(expected_bits, found_bits):
        return None
    where = (expected_bits != found_bits).nonzero()
    first = tuple(where[0].tolist())
    return (
        f"{len(where)} of {expected.numel()} elements, first {list(first)}: "
        f"{expected[first].item()!r} against {found[first].item()!r}"
    )


def _check_shapes(source: WeightSource, output: WeightSource) -> None:
    # the base is compared with the frequencies: NTK-aware scaling moves it on export
    ignored: dict[str, Any] = {"rotary_base": 0.0}
    formats = (source.format, output.format)
    if MetaFolder.format in formats:  # its files do not state their positions
        ignored["max_position_embeddings"] = 0
        if source.model.untie_embeddings_and_output_weights:
            # an output that equals the embedding looks tied there; both are compared below
            ignored["untie_embeddings_and_output_weights"] = True
    wanted, got = (dataclasses.replace(model.model, **ignored) for model in (source, output))
    if wanted != got:
        other = vars(got)
        differing = [
            f"{name} {value} against {other[name]}"
            for name, value in vars(wanted).items()
            if value != other[name]
        ]
        raise InputError(f"the models have different shapes: {', '.join(differing)}")


def _check_dtypes(source: WeightSource, output: WeightSource, dtype: torch.dtype | None) -> None:
    """Bits of two dtypes are not compared: what converts one into the other is told."""
    weights = model_weights(source.model)
    first, second = ({model.dtype(weight) for weight in weights} for model in (source, output))
    differing = [w for w in weights if (dtype or source.dtype(w)) != output.dtype(w)]
    if not differing:
        return
    number = counted(sum(len(weight.names) for weight in differing), "tensor")
    flags = {value: f"--dtype {name}" for name, value in DTYPES.items()}
    one, other = (flags.get(min(found, key=str)) for found in (first, second))
    converted = f", converted by {flags[dtype]}" if dtype in flags else ""
    wider = max(found.itemsize for found in second) > max(found.itemsize for found in first)
    if all(source.dtype(weight) == output.dtype(weight) for weight in weights):
        way = "leave --dtype out"
    elif len(second) == 1 and other and not wider:
        way = f"give {other}"
    elif len(first) == 1 and one:
        way = f"name the model in {_dtypes(second)} first, then the other, and give {one}"
    else:
        way = (
            "convert both to one dtype (`ultralong convert export --dtype bf16`), or compare others"
        )
    raise InputError(
        f"the first model is in {_dtypes(first)}{converted}, the second in {_dtypes(second)} "
        f"({number} of another dtype): --dtype converts the first before they are compared, so the "
        f"model and then its conversion are named; {way}"
    )


def _dtypes(found: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))


def _rope_differences(source: WeightSource, output: WeightSource) -> list[str]:
    frequencies = [
        inv_freq(model.rope_scaling, model.model.kv_channels, model.model.rotary_base)
        for model in (source, output)
    ]
    factors = [attention_factor(model.rope_scaling) for model in (source, output)]
    if np.array_equal(frequencies[0], frequencies[1]) and factors[0] == factors[1]:
        return []
    texts = [
        f"{in_words(model.rope_scaling)} over base {model.model.rotary_base:.17g}"
        for model in (source, output)
    ]
    return [f"rotary embedding: {' against '.join(texts)}"]


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
    file = OpenFile(path)

    def read(name: str) -> torch.Tensor:
        info = contents.tensors[name]
        count = torch.Size(info.shape).numel()
        return file.tensor(offsets[name], info.dtype, count).reshape(info.shape)

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
