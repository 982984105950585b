"""Which files of a Hugging Face folder hold its weights: the one set that transformers takes."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.disk.folder import check_inside, is_plain_name
from megatron_ultralong.checkpoint.formats import tensor_file
from megatron_ultralong.checkpoint.formats.kind import ADAPTER_FILE
from megatron_ultralong.data.read.signatures import POINTERS
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import ClosedFileError, InputError, counted
from megatron_ultralong.program.json_file import read_json

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_NAMES: tuple[tuple[str, type[tensor_file.TensorFile]], ...] = (
    (SINGLE_FILE, tensor_file.SafetensorsFile),
    (INDEX_FILE, tensor_file.SafetensorsFile),
    ("pytorch_model.bin", tensor_file.PickleFile),
    ("pytorch_model.bin.index.json", tensor_file.PickleFile),
)
"""In the order in which transformers 5 looks for them."""
_INDEX_SUFFIX = ".index.json"
_CHOICE_KEY = "transformers_weights"
"""Key of ``config.json`` that names the file: transformers looks for no other then."""
_PER_RANK = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""What a distributed training of transformers 5 saves; it takes these before any other file."""
_LOOKS_LIKE_WEIGHTS = re.compile(
    r"(?!training_args|optimizer|scheduler|rng_state).*"
    r"\.(safetensors|bin|pth|pt|h5|msgpack|gguf|index\.json)"
)


@dataclasses.dataclass(frozen=True)
class WeightSet:
    """Files that together are all weights of a model."""

    name: str
    """The file that a reader opens first."""
    files: frozenset[str]
    kind: type[tensor_file.TensorFile] | None = None
    """None: not read here."""
    places: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What an index says: tensor to file."""
    fault: str | None = None
    """Why it cannot be the model's."""

    @property
    def label(self) -> str:
        """For messages: ``model.safetensors.index.json (6 files)``."""
        count = len(self.files)
        if count < 2 and not self.places:
            return self.name
        return f"{self.name} ({counted(count, 'file')})"


def has_weights(folder: Path) -> bool:
    """Whether a file in ``folder`` has the name of weights, in whichever format."""
    return any(_LOOKS_LIKE_WEIGHTS.fullmatch(path.name) for path in folder.iterdir())


def open_weights(
    folder: Path, config: Mapping[str, Any]
) -> tuple[list[tensor_file.TensorFile], dict[str, tensor_file.TensorFile]]:
    """The weight files of ``folder``, and which of them holds each tensor.

    As in transformers, all tensors of an index's files count, also those that it does not name.

    Raises:
        InputError: there are none, two sets of them, one is not complete, or a tensor stands in
            two files.
    """
    chosen = _choose(folder, config)
    if (folder / ADAPTER_FILE).is_file():
        tell(
            f"warning: {folder}: {chosen.label} is read without the adapter of {ADAPTER_FILE}; if "
            "the model is meant with it, merge it first"
        )
    assert chosen.kind is not None
    names = sorted(chosen.files)
    for name in names:
        check_inside(folder / name, folder)
    files = {name: chosen.kind(folder / name) for name in names}
    located: dict[str, tensor_file.TensorFile] = {}
    for file in files.values():
        for tensor in file.tensors:
            if tensor in located:
                raise InputError(
                    f"{folder}: tensor {tensor} is in {located[tensor].path.name} and in "
                    f"{file.path.name}: the files belong to different models; keep those of "
                    "one"
                )
            located[tensor] = file
    for tensor, name in chosen.places.items():
        if tensor not in files[name].tensors:
            raise InputError(
                f"{folder}: {chosen.label} says that {name} holds tensor {tensor}, and it does "
                "not: index and files belong to different models or saves; copy all of them "
                "again"
            )
    return list(files.values()), located


def _choose(folder: Path, config: Mapping[str, Any]) -> WeightSet:
    sets = list(_sets(folder, config))
    if not sets or sets[0].kind is None:
        raise InputError(_nothing_to_read(folder, sets))
    first = sets[0]
    others = [other for other in sets[1:] if other.files != first.files]
    complete = [other for other in others if other.fault is None]
    if first.fault is not None:
        more = "copy it again, with all of its files"
        if complete:
            more = f"{complete[0].label} is complete: if that is the model, move {first.name} away"
        raise InputError(f"{folder}: {first.fault}; {more}")
    if complete and not config.get(_CHOICE_KEY):
        labels = [each.label for each in (first, *complete)]
        raise InputError(
            f"{folder} holds {len(labels)} complete sets of weights, which may be of different "
            f"models: {' and '.join(labels)}. transformers reads {labels[0]}, other programs "
            "another one: move all but one out of the folder"
        )
    for other in others:
        why = other.fault or f"{_CHOICE_KEY} in config.json names {first.label}"
        tell(f"warning: {folder}: {other.label} is not read ({why}); {first.label} is")
    return first


def _sets(folder: Path, config: Mapping[str, Any]) -> Iterator[WeightSet]:
    """All sets of weights in ``folder``: first the one that transformers takes."""
    choice = config.get(_CHOICE_KEY)
    if choice:
        is_safe = str(choice).endswith((".safetensors", ".safetensors.index.json"))
        if not is_safe or not is_plain_name(choice) or not (folder / choice).is_file():
            raise InputError(
                f"{folder / 'config.json'}: {_CHOICE_KEY} is {choice!r}, which must be a "
                "safetensors file or an index of the folder: name one, or remove the key"
            )
        yield _named(folder, choice, tensor_file.SafetensorsFile)
    names = sorted(path.name for path in folder.iterdir())
    per_rank = [name for name in names if _PER_RANK.fullmatch(name)]
    if per_rank:
        yield WeightSet(per_rank[0], frozenset(per_rank))
    for name, kind in _NAMES:
        if (folder / name).is_file():
            yield _named(folder, name, kind)
    yield from _of_meta(folder, names)


def _named(folder: Path, name: str, kind: type[tensor_file.TensorFile]) -> WeightSet:
    if not name.endswith(_INDEX_SUFFIX):
        return WeightSet(name, frozenset([name]), kind, fault=_pointers(folder, [name]))
    check_inside(folder / name, folder)
    try:
        places = read_json(folder / name).object("weight_map")
    except ClosedFileError:
        raise
    except InputError as error:
        return WeightSet(name, frozenset(), kind, fault=f"{name} is damaged ({error})")
    wrong = [file for file in places.values() if not is_plain_name(file)]
    if wrong:  # nobody's mistake: nothing of such a folder is read
        raise InputError(
            f"{folder / name} names {wrong[0]!r}, which is not a file of its own folder"
        )
    files = sorted(set(places.values()))
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        fault: str | None = f"{name} names {counted(len(absent), 'file')} not there: {some(absent)}"
    else:
        fault = _pointers(folder, files) if files else f"{name} names no file"
    return WeightSet(name, frozenset(files), kind, places, fault)


def _pointers(folder: Path, names: Iterable[str]) -> str | None:
    """What is wrong where version control left its pointers instead of files."""
    for name in names:
        check_inside(folder / name, folder)
        with (folder / name).open("rb") as file:
            head = file.read(64)
        for pointer in POINTERS:
            if pointer.matches(head):
                return f"{name} is {pointer.name} ({pointer.way_out})"
    return None


def _of_meta(folder: Path, names: Iterable[str]) -> Iterator[WeightSet]:
    """Weights in Meta's format, or Mistral's, whose shape ``params.json`` has."""
    for suffix in (".pth", ".safetensors"):
        found = [n for n in names if n.startswith("consolidated") and n.endswith(suffix)]
        if found:
            has_shape = (folder / "params.json").is_file()
            fault = None if has_shape else "there is no params.json beside it"
            yield WeightSet(found[0], frozenset(found), fault=fault)


def _nothing_to_read(folder: Path, sets: list[WeightSet]) -> str:
    other = next((other for other in sets if other.kind is not None), None)
    if other is not None:
        return (
            f"{folder} holds {sets[0].label}, which transformers 5 takes before {other.label}, and "
            "which is not read here: move one of them out of the folder, or load and save the "
            "model with transformers"
        )
    text = f"{folder} holds no weights: none of {', '.join(name for name, _ in _NAMES)} is there"
    if sets and (folder / "params.json").is_file():
        return f"{text}, but {sets[0].label} is: to convert that, move config.json away"
    names = sorted(path.name for path in folder.iterdir())
    found = list(filter(_LOOKS_LIKE_WEIGHTS.fullmatch, names))
    if not found:
        return text
    if any(name.startswith("adapter_model") for name in found):
        return f"{text}; {some(found)} is an adapter: merge it into its model first, and save that"
    if any(re.search(r"-\d{5}-of-\d{5}", name) for name in found) and not sets:
        return f"{text}; {some(found)} are shards: their index is missing, copy it too"
    return f"{text}; {some(found)} is not read: load and save the model with transformers"


def some(names: Iterable[str], limit: int = 4) -> str:
    """The first of ``names``, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
