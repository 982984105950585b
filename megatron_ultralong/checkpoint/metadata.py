"""``ultralong.json``: what a Megatron checkpoint of ours is, beside its weights."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from megatron_ultralong import config, yarn
from megatron_ultralong.errors import InputError, missing

FILE_NAME = "ultralong.json"
SOURCE_FOLDER = "huggingface"
"""Small files of the source model (config, tokenizer, generation config), kept for export."""

_FORMAT_VERSION = 1
_SCALINGS = {
    "yarn": yarn.YarnConfig,
    "ntk": yarn.NtkConfig,
    "linear": yarn.LinearConfig,
}


@dataclasses.dataclass(frozen=True)
class CheckpointMetadata:
    """Everything that loading and export need to know and weights do not tell."""

    model: config.ModelConfig
    rope_scaling: yarn.RopeScaling
    source_model: str
    """Name of the model that the weights came from."""
    tokenizer_sha256: str | None = None
    """Of ``tokenizer.json`` in the source folder."""
    separator_ids: tuple[int, ...] | None = None
    """Ids between documents in the rows it was trained on."""
    angle_precision: config.AnglePrecision = "exact"
    trained_seq_length: int | None = None
    """Tokens of the longest rows that it was trained on under its rotary scaling; None: never
    trained since its import, which is taken to have been made for all its positions."""

    @property
    def trained_positions(self) -> int:
        """Positions that it was trained at: those of its rotary scaling, or fewer."""
        return self.trained_seq_length or self.model.max_position_embeddings

    def after_training(self, source: CheckpointMetadata, seq_length: int) -> CheckpointMetadata:
        """The same, trained from ``source`` on rows of ``seq_length`` tokens.

        What ``source`` was trained at counts as long as the rotary scaling stays what it was.
        """
        trained = min(seq_length, self.model.max_position_embeddings)
        if (self.rope_scaling, self.model) == (source.rope_scaling, source.model):
            trained = max(trained, source.trained_positions)
        return dataclasses.replace(self, trained_seq_length=trained)


def save_metadata(checkpoint: Path, metadata: CheckpointMetadata) -> None:
    """Write ``ultralong.json`` into a checkpoint folder, aside first."""
    rope: dict[str, Any] = {"method": "none"}
    scaling = metadata.rope_scaling
    if scaling is not None:
        method = next(name for name, kind in _SCALINGS.items() if isinstance(scaling, kind))
        rope = {"method": method, **dataclasses.asdict(scaling)}
    values = dataclasses.asdict(metadata)
    values["rope_scaling"] = rope
    text = json.dumps({"format_version": _FORMAT_VERSION, **values}, indent=2) + "\n"
    aside = checkpoint / (FILE_NAME + ".partial")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, checkpoint / FILE_NAME)


def load_metadata(checkpoint: Path) -> CheckpointMetadata:
    """Read ``ultralong.json`` of a checkpoint folder.

    Raises:
        InputError: no such folder or file, or one that this version cannot read.
    """
    path = Path(checkpoint) / FILE_NAME
    if not path.is_file():
        if not path.parent.is_dir():
            raise InputError(
                f"checkpoint folder {missing(checkpoint)}: name one that `ultralong convert import "
                "SRC DST` made, or the --save of a run"
            )
        raise InputError(
            f"{checkpoint} has no {FILE_NAME}: it is not a Megatron checkpoint of "
            "this project; make one with `ultralong convert import SRC DST`"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("format_version")
        rope = values.pop("rope_scaling")
        method = rope.pop("method")
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error!r}): import the checkpoint again") from error
    if version != _FORMAT_VERSION:
        raise InputError(
            f"{path} has format_version {version}, this program reads {_FORMAT_VERSION}"
        )
    scaling = config.from_dict(_SCALINGS[method], rope, str(path)) if method != "none" else None
    values["model"] = config.from_dict(config.ModelConfig, values["model"], str(path))
    if values.get("separator_ids") is not None:
        values["separator_ids"] = tuple(values["separator_ids"])
    return CheckpointMetadata(rope_scaling=scaling, **values)
