"""Evaluations that are finished in ``--output``: whether a command asks the same again.

A result states what was asked of its model (:func:`asked`): flags, contents of files, weights. All
of it is read from plain files, so that it is compared before ranks start and models are loaded.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.data.rows.manifest import CHAT_FILE_NAME, FILE_NAME
from megatron_ultralong.evaluation.commands import benchmark_of
from megatron_ultralong.evaluation.models.facts import (
    model_facts,
    name_and_folder,
    tokenizer_folder,
)
from megatron_ultralong.evaluation.results.file import LOSS_FILE, file_sha256, read_results
from megatron_ultralong.evaluation.results.result import Result, now, plain_values
from megatron_ultralong.evaluation.retrieval import needle_prompt
from megatron_ultralong.evaluation.ruler import parameters
from megatron_ultralong.program.aside import files_in
from megatron_ultralong.program.difference import value_difference
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.optional import installed_version
from megatron_ultralong.program.output import check_output

FREE = frozenset(
    {"output", "micro_batch_size", "beyond_trained_positions", "confirm_run_unsafe_code"}
)
"""Flags that decide no figure."""
FILES = frozenset(
    {"data", "data_path", "essays", "english_words", "haystack", "hotpotqa", "include_path"}
    | {"length_tokenizer", "squad", "word_lists"}
)
"""Flags that name files or folders: what they hold counts, not where it is."""
_MANIFESTS = {"loss": FILE_NAME, "chat": CHAT_FILE_NAME}
"""Of rows: equal manifests are of equal rows."""
_PROMPTS = {"needle": needle_prompt.PROMPT_VERSION, "ruler": parameters.PROMPT_VERSION}
"""Versions of prompts that are made here."""
_PACKAGES = {"harness": "lm_eval", "ruler": "wonderwords"}
"""Packages that hold questions, or words of them."""
_TOKENIZER_FILES = (".json", ".jinja", ".model")
_TASK_FILE = ".yaml"
_EVALUATION_FILE = "evaluation.json"


def asked(command: Any) -> dict[str, dict[str, Any]]:
    """What a command asks of each of its models, by their names: JSON, equal for equal figures.

    Raises:
        InputError: a model's folder is of no known kind.
    """
    (name, config), models = benchmark_of(command), command.models
    of_all, found = question(name, config), {}
    for load in models.load:
        facts = model_facts(load, models.precision, with_digest=False)
        own: dict[str, Any] = {**facts.identity, "trained positions": facts.max_positions}
        if name != "loss":  # there ids alone are compared
            files = files_in(tokenizer_folder(load))
            own["tokenizer"] = _digest(one for one in files if one.suffix in _TOKENIZER_FILES)
        found[facts.name] = {**of_all, **own}
    return found


def question(name: str, config: Any) -> dict[str, Any]:
    """What is the same for all models: flags and contents of files of the benchmark ``name``.

    Of the harness, task files count and the files that they name, not what their code reads.
    """
    found: dict[str, Any] = {"benchmark": name}
    for flag, value in plain_values(config).items():
        if flag in FILES:
            paths = [Path(path) for path in ([value] if isinstance(value, str) else value) if path]
            found[f"content of {flag}"] = _contents(name, flag, paths)
        elif flag not in FREE:
            found[flag] = value
    if name == "harness":
        tasks = [Path(task) for task in config.tasks if task.endswith(_TASK_FILE)]
        found["content of tasks"] = _digest_of_tasks(tasks)
    if name in _PROMPTS:
        found["version of prompts"] = _PROMPTS[name]
    if name in _PACKAGES:
        found[_PACKAGES[name]] = installed_version(_PACKAGES[name])
    return found


def _contents(name: str, flag: str, paths: Sequence[Path]) -> Any:
    """What the files of a flag hold: texts by SHA-256, folders by names, sizes and times."""
    if flag == "include_path":
        below = (path / name for path in paths for name in _names_below(path))
        return _digest_of_tasks(file for file in below if file.suffix == _TASK_FILE)
    if flag == "data_path":
        paths = [path / _MANIFESTS[name] for path in paths]
    return [_content(path) for path in paths]


def _content(path: Path) -> str:
    if path.is_file():
        return file_sha256(path)
    if str(path) == "-" or (path.exists() and not path.is_dir()):
        return f"a stream, read at {now()}"  # of which nobody can tell that it holds the same
    stats = [(name, (path / name).stat()) for name in _names_below(path)]
    listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    size = sum(size for _, size, _ in listing)
    digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]
    return f"{counted(len(listing), 'file')}, {size:,} bytes, names and times {digest}"


def _names_below(folder: Path) -> list[str]:
    """Files in a folder and below, from there on; none that are hidden, or that Python made."""
    found: list[str] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        is_new = (real := os.path.realpath(place)) not in seen  # a link may lead up
        seen.add(real)
        folders[:] = sorted(
            name for name in folders if is_new and name[0] != "." and name != "__pycache__"
        )
        paths = [os.path.join(place, name) for name in names if is_new and name[0] != "."]
        found += [os.path.relpath(path, folder) for path in paths if os.path.isfile(path)]
    return sorted(found)


def _digest(files: Iterable[Path]) -> str:
    found = [(file.name, file_sha256(file)) for file in sorted(files)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] if found else ""


def _digest_of_tasks(tasks: Iterable[Path]) -> str:
    """Of task files and of files that stand in them: by name, or as Python (``!function a.b``)."""
    left, found = [task for task in tasks if task.is_file()], set()
    while left:
        file = left.pop()
        if file in found:
            continue
        found.add(file)
        text = file.read_text(errors="replace") if file.name.endswith("yaml") else ""
        for word in re.split(r"[\s'\"\[\]{},]+", text):
            code = word.rpartition(".")[0].replace(".", "/") + ".py"
            named = Path(word), file.parent / word, file.parent / code
            left += [path for path in named if os.path.isfile(path)]
    return _digest(found)


def folder_of(output: str, model: str, num_models: int) -> str:
    """Where the answers of a model are: several have a folder each in ``output``."""
    return output if num_models == 1 else str(Path(output) / model)


def unfinished(command: Any) -> tuple[str, ...]:
    """Models of a command, as ``--load`` has them, whose answers are not in ``--output`` yet.

    Raises:
        InputError: another command made what is there, or nobody can tell which one.
    """
    (name, config), load = benchmark_of(command), command.models.load
    if not config.output:
        return tuple(load)
    if name == "loss":  # one table of all
        groups = {config.output: list(load)}
    else:
        _check_unmixed(config.output, len(load))
        names = [name_and_folder(one)[0] for one in load]
        groups = {
            folder_of(config.output, model, len(load)): [one]
            for model, one in zip(names, load, strict=True)
        }
    wanted: dict[str, dict[str, Any]] = {}
    left: list[str] = []
    for folder, group in groups.items():
        file = Path(folder) / (LOSS_FILE if name == "loss" else f"{name}.json")
        if file.is_file():
            wanted = wanted or asked(command)
            its = [wanted[name_and_folder(one)[0]] for one in group]
            _check_same(folder, _read(file, folder, name), its)
        else:
            check_output(folder)
            left += group
    return tuple(left)


def tell_finished(command: Any, left: Collection[str] = ()) -> None:
    """Say which models are evaluated already: those that are not ``left``."""
    name, config = benchmark_of(command)
    load = command.models.load
    names = [name_and_folder(one)[0] for one in load if one not in left]
    if name == "loss" and names:
        tell(f"{', '.join(names)}: already evaluated, see {config.output}")
        return
    for model in names:
        tell(f"{model}: already evaluated, see {folder_of(config.output, model, len(load))}")


def _check_unmixed(output: str, num_models: int) -> None:
    names = (_EVALUATION_FILE, LOSS_FILE)
    found = [name for name in names if (Path(output) / name).is_file()]
    if num_models > 1 and found:
        raise InputError(
            f"--output {output} holds {found[0]}, so it is one evaluation, and each of the "
            f"{num_models} models of --load gets a folder of its own: name another --output, or "
            "remove that folder"
        )


def _read(file: Path, folder: str, name: str) -> tuple[Result, ...]:
    """The results of a file; an InputError where it is damaged, or does not say what was asked."""
    way_on = f"name another --output, or remove {folder}"
    try:
        found = read_results(file, "position_loss" if name == "loss" else name)
    except InputError as error:
        raise InputError(f"--output {folder} is there, and {error}; or {way_on}") from error
    if not all(one.asked for one in found):
        raise InputError(
            f"--output {folder} was written by an earlier version, whose {file.name} does not say "
            "what was asked (contents of files, weights), so whether it answers this command is "
            f"not known; existing files are not overwritten: {way_on}"
        )
    return found


def _check_same(folder: str, found: Sequence[Result], wanted: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError, with the first difference, where results are those of another command."""
    before: dict[str, Any] = {"checkpoint": [one.checkpoint for one in found]}
    after: dict[str, Any] = {"checkpoint": [one["checkpoint"] for one in wanted]}
    pairs = [(before, after)]
    pairs += [(dict(one.asked), dict(its)) for one, its in zip(found, wanted, strict=False)]
    for before, after in pairs:
        for key in dict.fromkeys((*after, *before)):
            if before.get(key) != after.get(key):
                name, old, new = value_difference(key, before.get(key), after.get(key))
                raise InputError(
                    f"--output {folder} holds another evaluation: its {name} was {old}, now it is "
                    f"{new}; existing files are not overwritten: name another --output, or remove "
                    f"{folder}"
                )
