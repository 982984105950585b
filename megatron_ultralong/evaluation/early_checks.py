"""What can be told of an evaluation before torch and Megatron-Core are imported."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.checkpoint.formats.hugging_face_config import tokenizer_sha256
from megatron_ultralong.data.rows import manifest as manifests
from megatron_ultralong.data.rows.manifest import ChatManifest, Manifest
from megatron_ultralong.data.tokenize.tokenising import load_tokenizer
from megatron_ultralong.evaluation import finished
from megatron_ultralong.evaluation.commands import benchmark_of
from megatron_ultralong.evaluation.harness import task_files
from megatron_ultralong.evaluation.local.options import FitConfig
from megatron_ultralong.evaluation.models import facts
from megatron_ultralong.evaluation.models.interface import check_trained
from megatron_ultralong.evaluation.options import WITHOUT_TEMPLATE, HarnessConfig
from megatron_ultralong.generation.early_checks import check_template
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError, missing
from megatron_ultralong.program.fields import check_ranges, check_required
from megatron_ultralong.program.optional import check_optional_package
from megatron_ultralong.program.ranks import under_torchrun
from megatron_ultralong.program.temporary import unwritable

_MANIFESTS: dict[str, Callable[[str], Manifest | ChatManifest]] = {
    "loss": manifests.load_manifest,
    "chat": manifests.load_chat_manifest,
}
"""Of the rows that a benchmark reads."""
_FILES = {
    **dict.fromkeys(("data", "squad", "hotpotqa"), "a file or folder of questions"),
    **dict.fromkeys(("haystack", "essays"), "a text to hide something in"),
    "english_words": "a file of words",
    "include_path": "a folder of tasks",
    "length_tokenizer": "a folder with a tokenizer",
    "word_lists": "a folder with nounlist.txt, adjectivelist.txt and verblist.txt",
}
"""What fields of benchmarks name."""


def check_command(command: Any, num_ranks: int) -> bool:
    """Check flags, folders, layout, tokenizers, files and lengths of a command of ``evaluate``.

    Returns:
        Whether it ends here: all models are evaluated already, which is said.

    Raises:
        InputError: one of them is wrong, or they do not fit, or the output holds something else.
    """
    models = command.models
    check_required(models)
    name, config = benchmark_of(command)
    config.check()
    check_ranges(command)
    named = facts.named_folders(models, num_ranks)
    _check_names([name for name, _ in named], are_folders=name != "loss")
    manifest = _MANIFESTS[name](config.data_path) if name in _MANIFESTS else None
    trained = {}
    for load, (its_name, folder) in zip(models.load, named, strict=True):
        _, trained[its_name], _ = facts.shape_and_weights(folder)
        if name != "loss":
            tokenizer = PromptTokenizer(facts.tokenizer_folder(load))
            if isinstance(config, HarnessConfig) and config.apply_chat_template:
                check_template(tokenizer.folder, WITHOUT_TEMPLATE)
        elif manifest:  # ids alone are compared, and a model needs no tokenizer
            _check_ids(config.data_path, manifest.tokenizer_sha256, load, folder)
    _check_files(config)
    if isinstance(config, HarnessConfig):
        task_files.check_names(config.tasks)
    # A rank sees its own files: which models are left, the main one says when all have met.
    is_rank = under_torchrun() and num_ranks > 1
    if not is_rank and not finished.unfinished(command):
        finished.tell_finished(command)
        return True
    if manifest and config.split not in manifest.splits:
        raise InputError(
            f"{config.data_path} has no split {config.split!r}, only {', '.join(manifest.splits)}: "
            f"take that one with --split, or prepare one with a --{config.split}-fraction above 0"
        )
    longest, what = _asked_length(config)
    if name == "loss" and manifest:
        longest = longest or manifest.seq_length
    if not config.beyond_trained_positions:
        for its_name, positions in trained.items():
            check_trained(its_name, positions, longest, what=what)
    if isinstance(config, HarnessConfig):
        check_optional_package("lm_eval", "evaluate harness")
        _check_cache()
    return False


def _check_files(config: Any) -> None:
    """Raise InputError where a file or folder that a benchmark is to read is not there."""
    for flag, what in _FILES.items():
        paths = getattr(config, flag, ())
        for path in filter(None, (paths,) if isinstance(paths, str) else paths):
            if path != "-" and not Path(path).exists():  # it is standard input
                raise InputError(f"--{flag.replace('_', '-')} {missing(path)}: name {what}")


def _check_cache() -> None:
    """Raise InputError where the harness could not read data: it does so by copies in a cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    home = Path(os.environ.get("HF_HOME") or home, "datasets")
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or home).expanduser()
    if (refused := unwritable(cache)) is not None:
        raise InputError(
            f"the data of tasks is read by copies in {cache}, and {refused} cannot be written to: "
            "set HF_DATASETS_CACHE to a folder that can, on a disk that has room for the data"
        )


def _asked_length(config: Any) -> tuple[int, str]:
    """Tokens of the longest prompt that flags ask for, and what says so; 0: the models decide.

    ``lengths`` are those of prompts, and of a file's questions bins: there ``max_length`` is the
    limit.
    """
    values = vars(config)
    if values.get("lengths") and not (isinstance(config, FitConfig) and values["data"]):
        return max(values["lengths"]), ""
    if length := values.get("max_length"):
        return length, f"--max-length {length}"
    return values.get("seq_length", 0), ""


def _check_ids(data_path: str, stated: str, load: str, folder: Path) -> None:
    """Check that ids of the rows mean to a model what they mean to the rows.

    Raises:
        InputError: they are of a tokenizer with another vocabulary.
    """
    is_for_others = facts.is_hugging_face(folder)
    found = tokenizer_sha256(folder) if is_for_others else load_metadata(folder).tokenizer_sha256
    its, own = facts.tokenizer_folder(load), Path(data_path) / manifests.TOKENIZER_FOLDER
    if found in (None, stated) or _has_same_vocabulary(its, own):
        return
    raise InputError(
        f"the rows of {data_path} were made by another tokenizer ({stated[:12]}...) than the one "
        f"of --load {load} ({str(found)[:12]}...), with another vocabulary: the same ids would "
        f"mean other text; prepare rows with {its}"
    )


def _has_same_vocabulary(*folders: Path) -> bool:
    """Whether tokenizers that were written otherwise have the same ids for the same tokens."""
    files = [folder / "tokenizer.json" for folder in folders]
    if not all(file.is_file() for file in files):
        return False
    first, second = (load_tokenizer(file)[0].get_vocab(with_added_tokens=True) for file in files)
    return bool(first == second)


def _check_names(names: Sequence[str], *, are_folders: bool) -> None:
    """Raise InputError where two models have one name: nobody could tell their results apart; or
    several have folders in ``--output``, and one's name is that of no folder.
    """
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"two models of --load are called {name!r}: give each a name, --load before=FOLDER "
                "after=FOLDER"
            )
        if are_folders and len(names) > 1 and Path(name).name != name:
            raise InputError(
                f"--load {name}=...: with several models the name is that of a folder in --output; "
                "leave out what is not allowed in a file's name"
            )
