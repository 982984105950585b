"""Results under folders and files: found, read, told apart; what was left out is said."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.errors import InputError
from megatron_ultralong.evaluation.loss_result import LossResult
from megatron_ultralong.evaluation.output_folder import IDENTITY_FILE, SAMPLES_FILE, SUFFIX
from megatron_ultralong.evaluation.passkey_result import NeedleResult, PasskeyResult
from megatron_ultralong.evaluation.report.labels import with_labels
from megatron_ultralong.evaluation.report.measurement import Measurement, Result, same_but_for_file
from megatron_ultralong.evaluation.result_file import kind_of
from megatron_ultralong.evaluation.task_result import TASK_KINDS, TaskResult
from megatron_ultralong.json_file import read_json

_LOADERS: dict[str, Callable[[Path], Result]] = {
    "position_loss": LossResult.load,
    "passkey": PasskeyResult.load,
    "needle": NeedleResult.load,
    **{kind: lambda path, kind=kind: TaskResult.load(path, kind) for kind in TASK_KINDS},  # type: ignore[misc]
}
KINDS = tuple(_LOADERS)
"""Benchmarks, in the order in which the report shows them."""
_FILE_NAMES = {"loss.json", *(f"{kind}.json" for kind in KINDS)}
_REPORT = "report"


@dataclasses.dataclass(frozen=True)
class Gathered:
    """What was found."""

    measurements: tuple[Measurement, ...]
    """Those of each benchmark by trained positions, then in the order they were found."""
    notices: tuple[str, ...]
    """What a reader has to know of them, and what was left out."""


def gather(runs: Sequence[str | Path]) -> Gathered:
    """Results of ``runs``: files, and folders that are searched to their bottom.

    Folders that end in ``.partial`` are left out, and named in the notices.

    Raises:
        InputError: a run is absent or unfinished, a file is damaged or no result, or there are no
            results at all.
    """
    if not runs:
        raise InputError(
            "RUN is needed: folders that `ultralong evaluate ... --output` wrote, or files in them"
        )
    found: list[Measurement] = []
    notices: list[str] = []
    seen: set[Path] = set()
    for run in map(Path, runs):
        for path in _result_files(run, notices):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                found += _measurements(path)
    if not found:
        left_out = f"; {'; '.join(notices)}" if notices else ""
        raise InputError(
            f"no results in {', '.join(map(str, runs))}: name folders that `ultralong evaluate "
            f"... --output` wrote, or files in them{left_out}"
        )
    found = _without_copies(found, notices)
    found.sort(key=lambda one: (KINDS.index(one.kind), one.max_positions))
    labelled, label_notices = with_labels(found)
    return Gathered(tuple(labelled), (*label_notices, *notices))


def load_result(path: str | Path) -> Result:
    """The result in a file, of whatever benchmark.

    Raises:
        InputError: the file is absent or damaged, or holds no result.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind not in _LOADERS:
        found = "other JSON" if kind is None else f"'{kind}'"
        raise InputError(
            f"{path} holds {found}, not a result of an evaluation: name a file that holds one of "
            f"{', '.join(KINDS)}"
        )
    return _LOADERS[kind](path)


def _result_files(run: Path, notices: list[str]) -> Iterator[Path]:
    if any(part.endswith(SUFFIX) for part in (run.name, run.parent.name)):
        raise InputError(
            f"{run} is of an evaluation that is not finished: the command that began it goes on "
            "there; name its folder when it is done"
        )
    if run.is_file():
        yield run
        return
    if not run.is_dir():
        raise InputError(f"RUN {run} does not exist: name a folder or a file with results")
    for folder, folders, files in os.walk(run, onerror=_refuse):
        folders.sort()
        for name in [name for name in folders if name.endswith(SUFFIX)]:
            folders.remove(name)
            notices.append(_unfinished(Path(folder) / name))
        for name in sorted(files):
            path = Path(folder) / name
            if name.endswith(".json") and _is_result(path, notices):
                yield path


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot search {error.filename} ({error.strerror}): name other folders")


def _is_result(path: Path, notices: list[str]) -> bool:
    """Whether a file in a folder is to be read; others of the same names are left alone."""
    try:
        kind = kind_of(path)
    except InputError:
        if path.name not in _FILE_NAMES:
            return False
        raise
    if kind is not None and kind not in _LOADERS and kind != _REPORT:
        notices.append(f"{path} holds '{kind}', which this version does not know: left out")
    return kind in _LOADERS


def _unfinished(folder: Path) -> str:
    """What is said of a folder that an evaluation has not finished, or a conversion."""
    try:
        identity: dict[str, Any] = read_json(folder / IDENTITY_FILE)
        with (folder / SAMPLES_FILE).open("rb") as lines:
            num_samples = sum(1 for _ in lines)
        what = f"{identity['kind']} of '{identity['checkpoint']}', {num_samples:,} samples noted"
    except (OSError, InputError, KeyError, TypeError):
        return f"{folder} is not finished: left out"
    return f"{folder} is not finished ({what}): left out; the command that began it goes on there"


def _measurements(path: Path) -> list[Measurement]:
    result = load_result(path)
    if not isinstance(result, LossResult):
        return [Measurement(result.checkpoint, result, path)]
    return [
        Measurement(one.name, dataclasses.replace(result, checkpoints=(one,)), path)
        for one in result.checkpoints
    ]


def _without_copies(found: list[Measurement], notices: list[str]) -> list[Measurement]:
    kept: list[Measurement] = []
    for one in found:
        first = next(
            (k for k in kept if same_but_for_file(k, one) and k.source != one.source), None
        )
        if first is None:
            kept.append(one)
        else:
            notice = f"{one.source} holds the result of {first.source}: shown once"
            if notice not in notices:
                notices.append(notice)
    return kept
