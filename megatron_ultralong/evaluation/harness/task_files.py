"""Task files of lm-evaluation-harness: what they name, as far as files of this machine hold it.

They count with the files that they include, the Python files of their functions, and their data.
Not counted is what that Python reads, and what a data set of the hub holds beside its name.
"""

import contextlib
import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.contents import content, digest, names_below, unlike_all
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.yaml_file import Function, read_yaml

TASK_FILE = ".yaml"
"""How names of task files end in ``--tasks``."""
_SUFFIXES = (".yaml", ".yml")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_FORMS = frozenset(
    {"arrow", "csv", "hdf5", "json", "pandas", "parquet", "text", "xml"}
    | {"audiofolder", "imagefolder", "pdffolder", "videofolder", "webdataset"}
)
"""Builders of the library ``datasets``, which read files that the task names."""
_MOST_NESTED = 20
"""Mappings in each other; groups of tasks are a few."""


Parts = list[tuple[str, str]]
"""Names of files, and what they hold, in the order in which a task names them."""


def named(tasks: Iterable[str], data: str) -> list[str]:
    """Tasks of ``--tasks``, each once; of a file its name and what it holds, wherever it is.

    ``data`` is the folder with copies of data sets, or empty.
    """
    return list(
        dict.fromkeys(
            f"{Path(task).name} ({_combined([Path(task)], data)})"
            if task.endswith(TASK_FILE) and os.path.isfile(task)
            else task
            for task in tasks
        )
    )


def check_names(tasks: Iterable[str]) -> None:
    """Check that no two of ``--tasks`` are called the same: the harness would ask the last alone.

    A file that cannot be read is not told here: the harness says why.

    Raises:
        InputError: two are; the message names both.
    """
    seen: dict[str, str] = {}
    for task in tasks:
        name = task
        if task.endswith(TASK_FILE) and os.path.isfile(task):
            with contextlib.suppress(InputError):
                values = _with_included(Path(os.path.abspath(task)), [], ())
                stated = values.get("group", values.get("task"))
                name = stated if isinstance(stated, str) else task
        if os.path.realpath(other := seen.setdefault(name, task)) != os.path.realpath(task):
            raise InputError(
                f"--tasks {other} and {task} are both called {name!r}, and the harness asks one "
                "task of a name, the last: change the name in one of the files (task: ...), or "
                "evaluate them one after the other"
            )


def contents_below(folder: Path, data: str) -> str:
    """What the task files of a folder and of those in it hold."""
    files = [folder / name for name in names_below(folder) if name.endswith(_SUFFIXES)]
    return _combined(files, data, are_parts=True)


def _combined(files: Iterable[Path], data: str, *, are_parts: bool = False) -> str:
    """What task files hold, with all that they name; unlike every other where that is not known.

    ``are_parts``: those that are no task and no group are what others include, which count there.
    """
    found: Parts = []
    unknown: list[str] = []
    for file in files:
        own: Parts = []
        try:
            values = _with_included(Path(os.path.abspath(file)), own, ())
            if not are_parts or {"task", "group"} & {*values}:
                for one in _mappings(values):
                    own += [(part.name, content(part)) for part in _named_by(one, data)]
        except InputError as error:
            unknown.append(f"{file.name}: {error}")
        found.append((file.name, digest(own)))
    if not found:
        return ""
    of_all = digest(sorted(found))
    return unlike_all(f"{of_all}, and what cannot be compared: {unknown[0]}") if unknown else of_all


def _with_included(file: Path, parts: Parts, within: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping of a file, over those of the files that it includes.

    Raises:
        InputError: one of them is not there, or cannot be read.
    """
    parts.append((file.name, content(file)))
    if file in within:  # the harness refuses it
        return {}
    values = read_yaml(file, "task file", has_functions=True)
    merged: dict[str, Any] = {}
    for name in _texts(values.get("include")):
        inner = Path(os.path.abspath(file.parent / name))
        merged |= _with_included(inner, parts, (*within, file))
    for one in _functions(values):
        parts += [(code.name, content(code)) for code in _code(file.parent, one)]
    return merged | values


def _functions(values: Any) -> Iterator[Function]:
    if isinstance(values, Function):
        yield values
    inner = values.values() if isinstance(values, dict) else values
    for one in inner if isinstance(values, dict | list) else ():
        yield from _functions(one)


def _code(folder: Path, function: Function) -> list[Path]:
    """The Python files that may hold ``module.function``."""
    module = function.rpartition(".")[0]
    names = dict.fromkeys((f"{module}.py", f"{module.replace('.', '/')}.py"))
    return [folder / name for name in names if os.path.isfile(folder / name)]


def _mappings(values: Mapping[str, Any], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """A task, or the tasks of a group, each over what the group says."""
    yield values
    tasks = values.get("task")
    if depth > _MOST_NESTED:
        raise InputError(f"its tasks stand in each other more than {_MOST_NESTED} times")
    for task in tasks if isinstance(tasks, list) else ():
        inner = task.get("include") if isinstance(task, dict) else task
        if inner and str(inner).endswith(_SUFFIXES):
            raise InputError(f"a group names the file {inner}, not a task")
        if isinstance(task, dict):
            outer = {key: value for key, value in values.items() if key != "task"}
            yield from _mappings({**outer, **task}, depth + 1)


def _named_by(task: Mapping[str, Any], data: str) -> Iterator[Path]:
    """Files and folders of the data and of the metrics of one task.

    Raises:
        InputError: some may be there that cannot be told.
    """
    metrics = task.get("metric_list")
    for metric in metrics if isinstance(metrics, list) else ():
        name = metric.get("metric") if isinstance(metric, dict) else None
        if isinstance(name, str) and "/" in name:
            copies = dict.fromkeys((Path(name), Path(data, name)))
            yield from (path for path in copies if path.exists())
    path, options = task.get("dataset_path"), task.get("dataset_kwargs") or {}
    if path is None and not options:  # of its Python, or a group of tasks
        return
    if not isinstance(path, str | None) or not isinstance(options, dict):
        raise InputError(f"dataset_path {path!r} or its dataset_kwargs have another type")
    yield from _data(path, options, data)


def _data(path: str | None, options: Mapping[str, Any], data: str) -> Iterator[Path]:
    """What ``datasets.load_dataset(path, data_dir=, data_files=)`` reads of this machine."""
    folder, files = options.get("data_dir") or "", list(_texts(options.get("data_files")))
    base, is_local, is_form = Path(), True, path is None or path in _FORMS
    if data and path and Path(data, path).is_dir():
        base, is_form = Path(data, path), False
    elif path is None or is_form:
        if path and not files and not folder:
            raise InputError(f"dataset_path {path} is a form of files, and none are named")
    elif os.path.isdir(path):
        base = Path(path)
    elif _HUB_NAME.fullmatch(path) and not os.path.exists(path):
        is_local = False
    else:
        raise InputError(f"dataset_path {path} is neither a folder here nor a data set's name")
    if is_local:
        base /= Path(_local(folder)).expanduser()
        if folder if is_form and not files else not is_form:
            if not base.is_dir():
                raise InputError(f"the data folder {base} is not here")
            yield base
    for name in files:
        if is_local or os.path.isabs(_local(name)) or "://" in name or name[:1] in "~.":
            yield from _matching(base, name)


def _matching(base: Path, name: str) -> Iterator[Path]:
    """The files that a name or pattern of ``data_files`` means."""
    path = Path(_local(name)).expanduser()
    pattern = path if path.is_absolute() else Path(glob.escape(str(base)), path)
    literal = [str(base / path)] if (base / path).exists() else []
    matched = glob.glob(str(pattern), recursive=True)
    found = sorted({*literal, *filter(os.path.isfile, matched)})
    if not found:
        raise InputError(f"data_files {name}: no file here has this name")
    yield from map(Path, found)


def _local(name: str) -> str:
    """A path, which may stand behind ``file://``.

    Raises:
        InputError: it is of another place.
    """
    path = name.removeprefix("file://") if isinstance(name, str) else ""
    if "://" in path or "::" in path or not isinstance(name, str):
        raise InputError(f"{name} is not a file of this machine")
    return path


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value: alone, in a list or under the names of splits.

    Raises:
        InputError: it holds something else.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
    elif value is not None:
        raise InputError(f"{value!r} is no name of a file")
