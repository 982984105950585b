"""``ultralong.json``: what a Megatron checkpoint of this project is, beside its weights."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any, get_args

from megatron_ultralong.checkpoint.disk import checksums
from megatron_ultralong.checkpoint.disk.folder import FORMAT_FILE, LATEST_FILE
from megatron_ultralong.config.plain_values import from_dict
from megatron_ultralong.config.rope import AnglePrecision
from megatron_ultralong.model import yarn
from megatron_ultralong.model.families import titles
from megatron_ultralong.model.shape import MOST_IDS, MOST_POSITIONS, ModelConfig
from megatron_ultralong.model.yarn import LinearConfig, NtkConfig, RopeScaling, YarnConfig
from megatron_ultralong.program.aside import files_below, whole
from megatron_ultralong.program.errors import InputError, missing
from megatron_ultralong.program.inner_folders import one_inside
from megatron_ultralong.program.json_file import JsonObject, read_json
from megatron_ultralong.program.ranks import is_main_rank

FILE_NAME = "ultralong.json"
SOURCE_FOLDER = "huggingface"
"""Small files of the source model (config, tokenizer, generation config), kept for export."""

_FORMAT_VERSION = 1
_SCALINGS = {"yarn": YarnConfig, "ntk": NtkConfig, "linear": LinearConfig}


@dataclasses.dataclass(frozen=True)
class CheckpointMetadata:
    """Everything that loading and export need to know and weights do not tell."""

    model: ModelConfig
    rope_scaling: RopeScaling
    source_model: str
    """Name of the model that the weights came from."""
    tokenizer_sha256: str | None = None
    """Of ``tokenizer.json`` in the source folder."""
    separator_ids: tuple[int, ...] | None = None
    """Ids between documents in the rows it was trained on."""
    angle_precision: AnglePrecision = "exact"
    trained_seq_length: int | None = None
    """Tokens of the longest rows that it was trained on under its rotary scaling; None: never
    trained since its import, which is taken to have been made for all its positions."""
    not_exportable: str | None = None
    """What of Megatron-LM's arguments makes it a model of no known family, of a run inside a user's
    own Megatron-LM; None: it is of a known one."""

    @property
    def trained_positions(self) -> int:
        """Positions that it was trained at: those of its rotary scaling, or fewer."""
        return self.trained_seq_length or self.model.max_position_embeddings

    @property
    def rotary(self) -> str:
        """How it turns positions, for people: ``yarn x4 over 8,192, ... (32,768 positions)``."""
        text = yarn.describe(self.rope_scaling, self.model.max_position_embeddings)
        exact = self.angle_precision == "exact"
        return text if exact else f"{text}, angles in {self.angle_precision}"

    @property
    def untrained_positions(self) -> str:
        """A warning where positions of its rotary embedding were not trained; else empty."""
        trained, positions = self.trained_positions, self.model.max_position_embeddings
        if trained == positions:
            return ""
        return (
            f"warning: the rotary embedding is made for {positions:,} positions, and rows of "
            f"{trained:,} tokens train the first {trained:,} alone: expect little beyond them; "
            f"prepare rows of {positions:,} if you need all of them"
        )

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
    if metadata.model.model_type == ModelConfig.model_type:  # older releases read it too
        del values["model"]["model_type"]
    text = json.dumps({"format_version": _FORMAT_VERSION, **values}, indent=2) + "\n"
    with whole(checkpoint / FILE_NAME) as aside:
        aside.write_text(text, encoding="utf-8")
        unseal(checkpoint)  # not before: the old one stays sealed where the disk is full
    seal_small_files(checkpoint)


def unseal(checkpoint: Path) -> None:
    """Before a change of small files: a kill in its midst must not leave hashes of other bytes."""
    (checkpoint / checksums.FILE_NAME).unlink(missing_ok=True)


def seal_small_files(checkpoint: Path) -> None:
    """Write the checksums of ``ultralong.json`` and of what was kept of the source model.

    Whoever changes one of them calls :func:`unseal` before and this after it.
    """
    kept = files_below(checkpoint / SOURCE_FOLDER)
    if (checkpoint / FILE_NAME).is_file():
        sealed = {
            path.relative_to(checkpoint).as_posix(): checksums.checksum(path)
            for path in (checkpoint / FILE_NAME, *kept)
        }
        checksums.write_checksums(checkpoint, sealed)


def _check_seal(root: Path) -> None:
    """Compare the small files of a checkpoint with their checksums, where there are such.

    Raises:
        InputError: a file is missing or not as it was written.
    """
    if not (root / checksums.FILE_NAME).is_file():
        return
    try:
        sealed = checksums.read_checksums(root)
        # a tokenizer has 10 MB or more, and a job thousands of ranks
        names = [name for name in sealed if "/" not in name or is_main_rank()]
        checksums.check_files(root, sealed, names)
    except checksums.DamagedError as error:
        way_out = (
            f"copy it again, or remove {root / checksums.FILE_NAME} if you changed it yourself"
        )
        raise checksums.refused(error, way_out) from error


def load_metadata(checkpoint: Path, *, any_model: bool = False) -> CheckpointMetadata:
    """Read ``ultralong.json`` of a checkpoint folder.

    ``any_model``: also of a model of no known family, trained inside a user's own Megatron-LM.

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
        raise no_metadata(Path(checkpoint))
    _check_seal(path.parent)
    values = read_json(path, hint="import the checkpoint again")
    version = values.integer("format_version")
    if version != _FORMAT_VERSION:
        raise InputError(
            f"{path} has format_version {version}, this program reads {_FORMAT_VERSION}"
        )
    model: ModelConfig = from_dict(ModelConfig, values.object("model"), str(path))
    model.check(str(path))
    precision = values.string("angle_precision", "exact")
    if precision not in get_args(AnglePrecision):
        raise values.wrong("angle_precision", " or ".join(get_args(AnglePrecision)))
    metadata = CheckpointMetadata(
        model=model,
        rope_scaling=_rope_scaling(values.object("rope_scaling"), path),
        source_model=values.string("source_model"),
        tokenizer_sha256=values.string("tokenizer_sha256", None),
        separator_ids=_separator_ids(values),
        angle_precision=precision,
        trained_seq_length=values.integer(
            "trained_seq_length", None, minimum=1, maximum=MOST_POSITIONS
        ),
        not_exportable=values.string("not_exportable", None),
    )
    if metadata.not_exportable and not any_model:
        raise InputError(
            f"{checkpoint} was trained inside a Megatron-LM with {metadata.not_exportable}: "
            f"continue with it there; this program reads models of {titles()} alone"
        )
    return metadata


def no_metadata(folder: Path) -> InputError:
    """What is raised for a folder without ``ultralong.json``: what it is, and what to do."""
    return InputError(f"{folder} has no {FILE_NAME}: {_what_it_is(folder)}")


def _what_it_is(folder: Path) -> str:
    """Of a folder that is not a checkpoint, and what to give instead of it."""
    run = folder.resolve().parent
    if (run / FILE_NAME).is_file():
        number = folder.name.removeprefix("iter_").lstrip("0") or "0"
        return (
            f"it is inside the checkpoint {run}: give that folder, whose "
            "latest_checkpointed_iteration.txt says which iteration is read"
            + f" (write {number} into it for this one)"
            * number.isdecimal()
        )
    if any((folder / name).is_file() for name in (LATEST_FILE, FORMAT_FILE)):
        return (
            "it is a checkpoint of Megatron-LM's own, or a copy without that file: copy "
            f"{FILE_NAME} from where the checkpoint was made, or train it in your Megatron-LM with "
            "megatron_ultralong.dropin, which writes the file to --save (docs/dropin.md)"
        )
    is_model = (folder / "config.json").is_file()
    if not is_model and (inside := one_inside(folder, (FILE_NAME, "config.json"))):
        return f"it is not a Megatron checkpoint of this project{inside}"
    what, source = ("a model of Hugging Face's, ", folder) if is_model else ("", "SRC")
    return (
        f"it is {what}not a Megatron checkpoint of this project; make one with `ultralong convert "
        f"import {shlex.quote(str(source))} DST`"
    )


def _rope_scaling(values: JsonObject, path: Path) -> RopeScaling:
    method = values.string("method")
    if method == "none":
        return None
    if method not in _SCALINGS:
        raise values.wrong("method", f"none or one of {', '.join(_SCALINGS)}")
    arguments = {key: value for key, value in values.items() if key != "method"}
    scaling: RopeScaling = from_dict(_SCALINGS[method], arguments, str(path))
    return scaling


def _separator_ids(values: JsonObject) -> tuple[int, ...] | None:
    ids = values.array("separator_ids", None)
    if ids is None:
        return None
    if not all(type(token) is int and 0 <= token < MOST_IDS for token in ids):
        raise values.wrong("separator_ids", "an array of token ids")
    return tuple(ids)
