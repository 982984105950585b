"""Evaluations that are finished in ``--output``: whether a command asks the same again.

A result states what was asked of its model (:func:`asked`): flags, contents of files, weights. All
of it is read from plain files, so that it is compared before ranks start and models are loaded.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.data.rows.manifest import CHAT_FILE_NAME, FILE_NAME
from megatron_ultralong.evaluation import another
from megatron_ultralong.evaluation.commands import benchmark_of
from megatron_ultralong.evaluation.contents import content, digest_of_files
from megatron_ultralong.evaluation.harness import task_files
from megatron_ultralong.evaluation.local import options as local
from megatron_ultralong.evaluation.models.facts import (
    is_copy,
    model_facts,
    name_and_folder,
    tokenizer_folder,
)
from megatron_ultralong.evaluation.results.asked_file import FILE_NAME as ASKED_FILE
from megatron_ultralong.evaluation.results.asked_file import Asked, read_asked
from megatron_ultralong.evaluation.results.file import FIX, LOSS_FILE, read_results
from megatron_ultralong.evaluation.results.result import plain_values
from megatron_ultralong.evaluation.retrieval import needle_prompt, passkey_prompt
from megatron_ultralong.evaluation.ruler import parameters
from megatron_ultralong.program.aside import files_in
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError
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
_LOCAL = ("graphwalks", "infinitebench", "longbench_v2", "lv_eval", "mrcr", "nolima", "ruler2")
_PROMPTS = {
    "needle": needle_prompt.PROMPT_VERSION,
    "passkey": passkey_prompt.PROMPT_VERSION,
    "ruler": parameters.PROMPT_VERSION,
    **dict.fromkeys(_LOCAL, local.PROMPT_VERSION),
}
"""Versions of prompts that are made here."""
_PACKAGES = {"harness": "lm_eval", "ruler": "wonderwords"}
"""Packages that hold questions, or words of them."""
_TOKENIZER_FILES = (".json", ".jinja", ".model")
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
            own["tokenizer"] = digest_of_files(
                one for one in files if one.suffix in _TOKENIZER_FILES
            )
        found[facts.name] = {**of_all, **own}
    return found


def question(name: str, config: Any) -> dict[str, Any]:
    """What is the same for all models: flags and contents of files of the benchmark ``name``.

    Of the harness, task files count and the files that they name, not what their code reads; see
    :mod:`megatron_ultralong.evaluation.harness.task_files`.
    """
    found: dict[str, Any] = {"benchmark": name}
    for flag, value in plain_values(config).items():
        if flag in FILES:
            paths = [Path(path) for path in ([value] if isinstance(value, str) else value) if path]
            found[f"content of {flag}"] = _contents(name, flag, paths, config)
        elif flag not in FREE:
            found[flag] = value
    if name == "harness":
        found["tasks"] = task_files.named(config.tasks, config.data)
    if name in _PROMPTS:
        found["version of prompts"] = _PROMPTS[name]
    if name in _PACKAGES:
        found[_PACKAGES[name]] = installed_version(_PACKAGES[name])
    return found


def _contents(name: str, flag: str, paths: Sequence[Path], config: Any) -> list[str]:
    """What the files of a flag hold: texts by SHA-256, folders by names, sizes and times."""
    if flag == "include_path":
        return [task_files.contents_below(path, config.data) for path in paths]
    if flag == "data_path":
        paths = [path / _MANIFESTS[name] for path in paths]
    return [content(path) for path in paths]


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
        if found := _done(folder, name):
            wanted = wanted or asked(command)
            its = [wanted[name_and_folder(one)[0]] for one in group]
            _check_same(folder, found, its, command)
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


def _done(folder: str, name: str) -> list[Asked]:
    """What was asked of each model whose answers are in a folder; empty: there are none.

    Raises:
        InputError: a file is damaged, or does not say what was asked.
    """
    file = Path(folder) / (LOSS_FILE if name == "loss" else f"{name}.json")
    without_result = Path(folder) / ASKED_FILE
    try:
        if file.is_file():
            found = [
                Asked(one.checkpoint, one.asked, one.model.digest if one.model else "")
                for one in read_results(file, "position_loss" if name == "loss" else name)
            ]
        elif name == "harness" and without_result.is_file():
            file, found = without_result, [read_asked(without_result)]
        else:
            return []
    except InputError as error:
        what = str(error).removesuffix(f": {FIX}").removesuffix(": name another file")
        raise InputError(
            f"--output {folder} is there, and {what}: restore the file, or remove {folder} and "
            "evaluate again, or name another --output"
        ) from error
    if not all(one.asked for one in found):
        raise InputError(
            f"--output {folder} was written by an earlier version, whose {file.name} does not say "
            "what was asked (contents of files, weights), so whether it answers this command is "
            "not known; existing files are not overwritten: name another --output, or remove "
            f"{folder}"
        )
    return found


def _check_same(
    folder: str, found: Sequence[Asked], wanted: Sequence[Mapping[str, Any]], command: Any
) -> None:
    """Raise InputError, with the first difference, where results are those of another command."""
    before: dict[str, Any] = {"checkpoint": [one.checkpoint for one in found]}
    after: dict[str, Any] = {"checkpoint": [one["checkpoint"] for one in wanted]}
    pairs = [(before, after)]
    for one, its in zip(found, wanted, strict=False):
        is_same = _other_stamps(one, its) and _is_copy(one, its["checkpoint"], command.models)
        known = {"weights": its["weights"]} if is_same else {}
        pairs.append(({**one.asked, **known}, dict(its)))
    if told := another.first_of(pairs, command):
        raise InputError(
            f"--output {folder} holds another evaluation: {told}; existing files are not "
            f"overwritten: name another --output, or remove {folder}"
        )


def _other_stamps(one: Asked, its: Mapping[str, Any]) -> bool:
    """Whether the weights alone tell these apart."""
    others = {key for key in {*one.asked, *its} if one.asked.get(key) != its.get(key)}
    return others == {"weights"}


def _is_copy(one: Asked, name: str, models: Any) -> bool:
    """Whether files of weights with other times or names hold what a result was measured with."""
    (load,) = (arg for arg in models.load if name_and_folder(arg)[0] == name)
    return is_copy(load, models.precision, one.digest)
