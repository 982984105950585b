"""Reports of models and conversions, and how a terminal shows them: as tables, or as JSON.

Among them ``ultralong convert inspect``: what a model on disk holds.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from megatron_ultralong.checkpoint.convert import early_checks
from megatron_ultralong.checkpoint.convert.verification import num_bytes
from megatron_ultralong.checkpoint.disk import folder as folders
from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata
from megatron_ultralong.checkpoint.formats import hugging_face_config, rope_readers, weight_map
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.hugging_face_config import CONFIG_FILE, architectures_of
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.models import ModelFolder, open_model
from megatron_ultralong.checkpoint.formats.tokenizer_files import TokenizerFiles
from megatron_ultralong.checkpoint.formats.weight_files import has_weights
from megatron_ultralong.config.convert import InspectConfig
from megatron_ultralong.config.rope_recipe import rope_recipe
from megatron_ultralong.model.families import ARCHITECTURES, llama, refusal
from megatron_ultralong.model.families.family import QKV_WEIGHT
from megatron_ultralong.model.shape import num_parameters
from megatron_ultralong.program import json_file, terminal
from megatron_ultralong.program.errors import InputError

_MODEL_KEYS = {"architectures", "hidden_size", "model_type", "num_attention_heads", "text_config"}
"""Of which every ``config.json`` has some."""


def lone_config(path: Path) -> Path | None:
    """The ``config.json`` that ``path`` is or that it holds without weights; None: a model.

    Raises:
        InputError: it leads out of the folder that was given.
    """
    if path.is_file() and path.suffix == ".json":
        return path
    others = (path / folders.LATEST_FILE, path / folders.FORMAT_FILE)
    if not (path / CONFIG_FILE).is_file() or has_weights(path) or any(o.is_file() for o in others):
        return None
    folders.check_inside(path / CONFIG_FILE, path)
    return path / CONFIG_FILE


def inspect_config(path: Path) -> dict[str, Any]:
    """What a configuration says of its rotary embedding, of whatever architecture it is.

    Raises:
        InputError: it is damaged or none, its rope block is none that is known here, or its numbers
            are those of no model.
    """
    values = json_file.read_json(path)
    if not _MODEL_KEYS.intersection(values):
        raise InputError(
            f"{path} is no configuration of a model: it has none of "
            f"{', '.join(sorted(_MODEL_KEYS))}; give the config.json, or the model's folder"
        )
    inner = values.object("text_config", None)  # of models that see and hear too
    config = json_file.JsonObject({**values, **inner}, values.where) if inner else values
    architectures = architectures_of(values)
    heads = config.integer("num_attention_heads", 32, minimum=1)
    head_dim = config.integer("head_dim", 0) or config.integer("hidden_size", 4096) // heads
    family = next((ARCHITECTURES[name] for name in architectures if name in ARCHITECTURES), None)
    rope = hugging_face_config.stated_rope(config, head_dim, (family or llama.LLAMA).name)
    why = "" if family else f"{refusal(architectures)}; the rope block is described as a Llama's"
    if family:
        try:
            hugging_face_config.with_defaults(values, family)
        except InputError as error:
            why = str(error)
    return {
        "format": "a configuration without weights",
        "path": str(path),
        "architectures": architectures,
        "family": family.title if family else None,
        "conversion": why or None,
        "rope_theta": rope.base,
        "rope_block": next(
            (config[key] for key in ("rope_scaling", "rope_parameters") if config.get(key)), None
        ),
        "rope_recipe": rope_recipe(rope.scaling, rope.positions),
        "good_for": (
            {"no engine": f"was run with such a model: {why}"}
            if why
            else rope_readers.good_for(rope)
        ),
    }


@dataclasses.dataclass(frozen=True)
class WeightsSummary:
    """Weights in numbers."""

    num_tensors: int
    """Hugging Face tensors."""
    num_parameters: int
    num_bytes: int
    dtype: str


def summarise(source: weight_map.WeightSource, dtype: torch.dtype | None = None) -> WeightsSummary:
    """Count the weights of ``source``, converted to ``dtype``."""
    weights = weight_map.model_weights(source.model)
    dtypes = {dtype or source.dtype(weight) for weight in weights}
    return WeightsSummary(
        num_tensors=sum(len(weight.names) for weight in weights),
        num_parameters=num_parameters(source.model),
        num_bytes=num_bytes(source, dtype),
        dtype=", ".join(sorted(str(each).removeprefix("torch.") for each in dtypes)),
    )


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What a conversion did."""

    action: str
    source: str
    output: str
    iteration: int
    """Of the Megatron checkpoint; 0 is release."""
    weights: WeightsSummary
    """As they were written."""
    seconds: float
    """Of the writing, without the verification."""
    verify_seconds: float
    verified: bool
    """Every tensor was read back and is equal to the source, bit for bit."""
    num_resumed_tensors: int
    """Megatron's tensors that an earlier, killed conversion had finished."""
    rope: Mapping[str, Any] | None
    """Rotary scaling; of an export the block in its config.json."""
    max_position_embeddings: int
    trained_positions: int
    """The first of those that the weights were trained at, as far as is known."""
    tokenizer_sha256: str | None
    good_for: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Exports: programs and versions that read it as it was meant, as a whole and file by file."""
    changed_files: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    """Exports to Hugging Face: small files that are not the source's byte for byte, and what is new
    in them; config.json, which is written again, aside."""


_OPTIMIZER = "optimizer."


def inspect(config: InspectConfig) -> dict[str, Any]:
    """Format, shape, rotary embedding and tensors of a model; also printed.

    Of a ``config.json`` without weights the rotary embedding alone.

    Raises:
        InputError: it is in no known format, or damaged.
    """
    early_checks.check_inspect(config)
    lone = lone_config(config.src)
    if lone is not None:
        values = inspect_config(lone)
        show(values, config.json)
        return values
    model = open_model(config.src, config.iteration, verify_checksums=config.verify_checksums)
    values = {
        "format": model.format,
        "path": str(config.src),
        "family": model.model.family.title,
        **(_megatron(model) if isinstance(model, MegatronCheckpoint) else _folder(model)),
        **dataclasses.asdict(summarise(model)),
        "model": dataclasses.asdict(model.model),
        "rope": dataclasses.asdict(model.rope_scaling) if model.rope_scaling else None,
        "rope_kind": type(model.rope_scaling).__name__ if model.rope_scaling else "none",
        "rope_recipe": rope_recipe(model.rope_scaling, model.model.max_position_embeddings),
    }
    tensors = _tensors(model)
    values |= _engines(model)
    if config.json:
        sys.stdout.write(json.dumps({**values, "tensors": tensors}, indent=2) + "\n")
    else:
        show(values, as_json=False)
        show_rows([{**row, "layers": row["layers"] or None} for row in tensors])
    return {**values, "tensors": tensors}


def _engines(model: ModelFolder | MegatronCheckpoint) -> dict[str, Any]:
    """What engines make of its rope block: of a checkpoint and of Meta's files, their export's."""
    if isinstance(model, MegatronCheckpoint):
        metadata = model.metadata
    else:
        metadata = CheckpointMetadata(model.model, model.rope_scaling, model.name)
    try:
        if isinstance(model, HuggingFaceFolder):
            rope = model.rope
        else:
            rope = hugging_face_config.exported_rope(metadata)
    except InputError as error:
        return {"good_for": {"no engine": str(error)}}
    said = angles(rope, metadata.angle_precision)
    return {"good_for": rope_readers.good_for(rope), "angles": said}


def _folder(model: ModelFolder) -> dict[str, Any]:
    return {
        "source_model": model.name,
        "files": [file.path.name for file in model.files],
        "tokenizer_sha256": hugging_face_config.tokenizer_sha256(model.folder),
    }


def _megatron(model: MegatronCheckpoint) -> dict[str, Any]:
    tensors = model.tensors.tensors
    files = {info.relative_path for info in model.tensors.metadata.storage_data.values()}
    qkv = next(entry for key, entry in tensors.items() if key.endswith(QKV_WEIGHT))
    return {
        "iteration": model.iteration,
        "iterations": folders.iterations(model.root),
        "source_model": model.metadata.source_model,
        "tokenizer_sha256": model.metadata.tokenizer_sha256,
        "trained_positions": model.metadata.trained_positions,
        "separator_ids": list(model.metadata.separator_ids or ()),
        "optimizer_state": any(key.startswith(_OPTIMIZER) for key in tensors),
        # files are named __RANK_NUMBER.distcp
        "ranks_that_wrote": len({name.rsplit("_", 1)[0] for name in files}),
        "written_at_tensor_model_parallel_size": len({chunk.offsets[-2] for chunk in qkv.chunks}),
    }


def _tensors(model: weight_map.WeightSource) -> list[dict[str, Any]]:
    """One row for each weight, the layers of a weight together, without their common prefix."""
    rows: dict[str, dict[str, Any]] = {}
    for weight in weight_map.model_weights(model.model):
        if weight.key in rows:
            rows[weight.key]["layers"] += 1
            continue
        rows[weight.key] = {
            "megatron": weight.key.removeprefix("decoder.layers."),
            "hugging_face": [
                name.removeprefix("model.layers.0.").removesuffix(".weight")
                for name in weight.names
            ],
            "layers": 0 if weight.layer is None else 1,
            "shape": " x ".join(map(str, weight.shape)),
            "dtype": str(model.dtype(weight)).removeprefix("torch."),
        }
    return list(rows.values())


TRIED = (
    *("4.43.4", "4.44.2", "4.45.2", "4.48.3", "4.50.3", "4.51.3", "4.52.4", "4.55.4", "4.56.2"),
    *("4.57.6", "5.0.0", "5.20.2", "5.23.0"),  # 5.20.2: the last one for Python 3.10
)
"""Releases of transformers that exports were loaded with: tests/checkpoint/test_releases.py."""

_HEAD_DIM = ">=4.45"
"""Before, heads of hidden_size / num_attention_heads were taken, whatever head_dim says."""


def good_for(
    metadata: CheckpointMetadata, tokenizer: TokenizerFiles, merges: str = "keep"
) -> dict[str, Any]:
    """Programs that read an export as it was meant.

    ``transformers``: releases that read all of it; ``files``: each of its files; ``engines``: what
    each engine and version that was run makes of the rope block in ``config.json``, with the flags
    that it has to be served with; ``angles``: what they all lose.
    """
    rope = hugging_face_config.exported_rope(metadata)
    oldest = rope_readers.oldest_transformers(rope)
    model = metadata.model
    plain = model.kv_channels * model.num_attention_heads == model.hidden_size
    bounds = [oldest, *([] if plain else [_HEAD_DIM])]
    files: Mapping[str, str] = {
        hugging_face_config.CONFIG_FILE: max(bounds, key=_release)
        if oldest.startswith(">=")
        else oldest,
        **tokenizer.readers(merges),
    }
    all_of_it = max((text for text in files.values() if text.startswith(">=")), key=_release)
    untried = [file for file, text in files.items() if not text.startswith(">=")]
    return {
        "transformers": all_of_it + (f"; not tried: {', '.join(untried)}" if untried else ""),
        "engines": rope_readers.good_for(rope),
        "angles": angles(rope, metadata.angle_precision),
        "files": files,
        "tried": f"transformers {', '.join(TRIED)}",
    }


_SMALL = 0.01
"""Error of cos and sin that is not worth another training: what bfloat16 rounds them by."""


def angles(rope: rope_readers.Rope, trained: str = "exact") -> str:
    """How far cos and sin of an engine are from those of the training, at the last positions."""
    error = rope_readers.float32_angle_error(rope)
    said = (
        f"engines compute angles in float32: cos and sin are off by up to {error:.2g} at position"
    )
    said += f" {rope.positions - 1:,}"
    if trained == "float32":
        return f"{said}, as in the training"
    return said if error < _SMALL else f"{said}; --angle-precision float32 trains for it"


def _release(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.removeprefix(">=").split(".")))


_SHA256_LENGTH, _SHA256_SHOWN = 64, 16


def show(values: Mapping[str, Any], as_json: bool) -> None:
    """Print a report on standard output."""
    if as_json:
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, text in _lines(values):
        if len(text) == _SHA256_LENGTH and " " not in text:
            text = f"{text[:_SHA256_SHOWN]}... (whole: --json)"
        table.add_row(key if "." in key else key.replace("_", " "), text)  # names of files stay
    terminal.Console().print(table)


def show_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that have the same columns as a table; long names continue after a dot."""
    console = terminal.Console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*("-" if value is None else _parted(_text(value)) for value in row.values()))
    console.print(table)


_NAME_WIDTH = 22
"""Columns of a name: five columns then fit into 80."""


def _parted(text: str) -> str:
    """Names in lines of at most :data:`_NAME_WIDTH`: cut after commas, and long names at dots."""
    lines = [""]
    for name in re.findall(r"[^,]+,? ?", text):
        parts = [name] if len(name.rstrip()) <= _NAME_WIDTH else re.findall(r"[^.]+\.?", name)
        for part in parts:
            if lines[-1] and len(lines[-1]) + len(part.rstrip()) > _NAME_WIDTH:
                lines.append("")
            lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _lines(values: Mapping[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            if value:
                yield indent + key, ""
            yield from _lines(value, indent + "  ")
        elif key == "num_resumed_tensors" and not value:
            continue  # nothing was resumed, as nearly always
        elif value not in (None, [], ()):  # nothing to say
            yield indent + key, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)
