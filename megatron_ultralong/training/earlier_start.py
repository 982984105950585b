"""What a start must have the same of as the one before it in ``--save``. It needs no torch."""

import dataclasses
import json
import operator
import shlex
from collections.abc import Mapping
from pathlib import Path

from megatron_ultralong.checkpoint.disk import folder as folders
from megatron_ultralong.checkpoint.disk.metadata import FILE_NAME, CheckpointMetadata, load_metadata
from megatron_ultralong.config.plain_values import flat_fields
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.program import aside, difference, json_file, owner_record
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.training.config_file import CONFIG_FILE, load_config, with_absolute_paths

LOG_FILE = "log.jsonl"
DATA_FILE = "data.json"
"""What the rows are, as :attr:`RunInputs.agreed` has it."""
_UNKNOWN = "nothing"

_FIXED = (
    *("global_batch_size", "data.seed", "data.seq_length", "data.document_mask"),
    "data.reset_position_ids",
    *(f"rope.{field.name}" for field in dataclasses.fields(RopeConfig)),
)
"""What a resumed run cannot change: the rows it has consumed, and what its weights mean."""


def check_save(
    root: Path, config: TrainingConfig, metadata: CheckpointMetadata, data: Mapping[str, str]
) -> TrainingConfig | None:
    """The configuration of the start before in ``root``; None: there are no checkpoints in it.

    Raises:
        InputError: ``root`` is in use by something else, or by a run that differs.
    """
    if not root.is_dir():
        if root.exists():
            raise InputError(f"--save {root} is a file: name an empty or new folder")
        return None
    if any(folders.iteration_folders(root)) or (root / folders.LATEST_FILE).is_file():
        return check_same_run(root, config, metadata, data)
    check_nobodys(root)
    return None


def load_source(config: TrainingConfig) -> CheckpointMetadata:
    """Metadata of what a run begins with.

    Raises:
        InputError: it cannot be read; where a run in ``--save`` began with it, how that resumes.
    """
    source, root = Path(config.load), Path(config.save)
    has_run = bool(config.save) and (root / CONFIG_FILE).is_file()
    if has_run and not source.exists() and any(folders.iteration_folders(root)):
        raise InputError(
            f"--load {config.load} does not exist; the run in --save {root}, which began with it, "
            f"resumes without: `ultralong {config.verb} --config "
            f"{shlex.quote(str(root / CONFIG_FILE))} --load {shlex.quote(str(root))}`"
        )
    return load_metadata(source)


def way_on(save: str | None) -> str:
    """From what the command of a run continues that has lost a rank: an end for its message."""
    if not save:
        return "nothing was saved, for there is no --save: the same command begins again"
    path = Path(save) / folders.LATEST_FILE
    try:
        latest = f"iteration {int(path.read_text(encoding='ascii'))} in {save}"
    except (OSError, ValueError):
        return f"{save} holds no checkpoint yet: the same command begins again"
    return f"the same command resumes from {latest}"


def check_nobodys(root: Path) -> None:
    """Raise InputError where a folder without checkpoints holds what is not a run's."""
    # of a start that was killed while it wrote the first
    begun = aside.partial_path(root / CONFIG_FILE)
    others = [
        path for path in root.iterdir() if not owner_record.is_owner_file(path) and path != begun
    ]
    if (root / folders.FORMAT_FILE).is_file():
        raise InputError(
            f"--save {root} is one checkpoint of the run in {root.resolve().parent}: give that "
            f"folder, whose {folders.LATEST_FILE} says from which checkpoint it is resumed"
        )
    if others and not (root / CONFIG_FILE).is_file():
        raise InputError(
            f"--save {root} is not empty and holds no checkpoints of a run: name an empty or "
            "new folder, so that nothing in it is lost"
        )


def check_same_run(
    root: Path, config: TrainingConfig, metadata: CheckpointMetadata, data: Mapping[str, str]
) -> TrainingConfig:
    """Compare a start with the one before in its folder ``root``, and return that one's.

    Raises:
        InputError: it is another run.
    """
    if not (root / CONFIG_FILE).is_file():
        raise InputError(
            f"--save {root} holds checkpoints but no {CONFIG_FILE}: it is not a run's folder, so "
            "it is not written to; name an empty or new folder"
        )
    if (root / LOG_FILE).is_file():
        (root / LOG_FILE).open("a").close()  # somebody else's may be closed to this user
    before = load_config(root / CONFIG_FILE, type(config))
    for field in _FIXED:
        old, new = (operator.attrgetter(field)(one) for one in (before, config))
        if old != new:
            name = field.split(".")[-1]
            raise InputError(
                f"--save {root} holds a run with {name} {old}, this one has {new}: a resumed "
                f"run keeps its {name}; use {old}, or another --save for a new run"
            )
    check_same_rows(
        root,
        data,
        f"--save {root} holds a run over other rows",
        "--data-path",
        f"another --save for a new run with --load {root}",
    )
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


_NOT_READ = ", whose weights are not read: the run continues from its own checkpoint"


def changes(before: TrainingConfig, now: TrainingConfig) -> list[str]:
    """Fields that differ: ``optimizer.lr was 3e-05, is 1e-05``."""
    before, now = with_absolute_paths(before), with_absolute_paths(now)
    old, new = flat_fields(dataclasses.replace(before, save=now.save)), flat_fields(now)
    return [
        f"{name} was {old[name]}, is {value}{_NOT_READ if name == 'load' else ''}"
        for name, value in new.items()
        if old[name] != value
    ]


def check_same_rows(
    root: Path, data: Mapping[str, str], what: str, flag: str, way_out: str
) -> None:
    """Compare the rows of a start with those of the one before, if they were kept.

    For the message: ``what`` is wrong where they differ, the ``flag`` that names rows, and the
    ``way_out`` for who wants other rows.

    Raises:
        InputError: they are others.
    """
    path = root / DATA_FILE
    if not path.is_file():  # of a run that began before there was such a file
        return
    hint = "remove it if the rows are those of the run"
    before = json_file.read_json(path, max_bytes=json_file.MAX_ROWS_BYTES, hint=hint)
    for name in [*before, *(name for name in data if name not in before)]:
        old, new = before.get(name, _UNKNOWN), data.get(name, _UNKNOWN)
        if old != new:
            name, old, new = difference.first_difference(name, str(old), new)
            name = name.replace("data manifest.inputs", "the list of sources", 1)
            raise InputError(
                f"{what}: {name} was {old}, is {new}; a resumed run continues in the rows that it "
                f"began with: name them with {flag}, or {way_out}"
            )


def save_rows(root: Path, data: Mapping[str, str]) -> None:
    """Keep what the rows of a run are, by name, beside its checkpoints."""
    aside.write_aside(root / DATA_FILE, json.dumps(data, indent=1) + "\n")


def _short(value: str) -> str:
    return value if len(value) <= 200 else value[:200] + "..."
