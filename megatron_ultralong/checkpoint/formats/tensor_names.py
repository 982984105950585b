"""Names of stored tensors, and which of a Llama's tensors each of them is."""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError

_BASE = "model."
_BUFFERS = (".rotary_emb.inv_freq",)
"""Buffers that old transformers saved beside the weights."""
_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning",
    "module": "DataParallel or DeepSpeed",
}
"""Modules that hold another and add their name to its tensors' names."""
_QUANTISED = (".qweight", ".qzeros", ".scales", ".absmax", ".weight_packed", ".weight_scale")


def known_names(stored: Iterable[str], known: Collection[str], folder: Path) -> dict[str, str]:
    """Stored name of every tensor, by the name it has in a Llama: names that are none stay.

    transformers 5 finds names with one ``model.`` too many or too few, and so do we. Names of
    which all have another prefix, or that a wrapper has put its own into, are read without it, and
    that is said: transformers would find none of them, and fill the model with random numbers.

    Args:
        stored: names in the files.
        known: a Llama's names.
        folder: for messages.

    Raises:
        InputError: two stored names are one tensor.
    """
    names = [name for name in stored if not name.endswith(_BUFFERS)]
    found = {name: _parted(name, known) for name in names}
    prefix = _common_prefix(found)
    result: dict[str, str] = {}
    for name, (before, plain) in found.items():
        # what does not begin as the others do is left as it is, and refused later
        target = plain if plain is not None and before == prefix else name
        if plain is None and prefix:
            target = name.removeprefix(prefix)
        if target in result:
            raise InputError(
                f"{folder} holds {result[target]} and {name}, and both are {target}: remove one"
            )
        result[target] = name
    _tell_changes(result, prefix, folder)
    return result


def why_unknown(stored: Sequence[str], known: Collection[str]) -> str:
    """What seems to be wrong with names that are not a Llama's, and the way out; may be empty."""
    adapters = [name for name in stored if ".lora_" in name or ".base_layer." in name]
    if adapters:
        return (
            f"; {len(adapters)} of {len(stored)} tensors are an adapter's ({adapters[0]}): merge "
            "it into its model first, and save that"
        )
    quantised = [name for name in stored if name.endswith(_QUANTISED)]
    if quantised:
        return (
            f"; {len(quantised)} of {len(stored)} tensors are a quantised model's "
            f"({quantised[0]}): dequantise it first"
        )
    flat = [name for name in stored if "_flat_param" in name]
    if flat:
        return (
            f"; {flat[0]} is what FSDP keeps many tensors in: save the model's full state dict "
            "(FullStateDictConfig)"
        )
    found = (_parted(name, known)[0] for name in stored)
    prefixes = collections.Counter(prefix for prefix in found if prefix)
    if not prefixes:
        return ""
    ((prefix, count),) = prefixes.most_common(1)
    return (
        f"; {count} of {len(stored)} tensors have the prefix {prefix!r}, the others do not: rename "
        f"those of the model (name.removeprefix({prefix!r})) and save them alone"
    )


def _parted(name: str, known: Collection[str]) -> tuple[str | None, str | None]:
    """Prefix of a stored name, and the Llama's name behind it; None and None: no such."""
    if name in known:
        return "", name
    parts = name.split(".")
    for start in range(len(parts)):
        rest = [part for i, part in enumerate(parts[start:]) if i == 0 or part not in _WRAPPERS]
        inner = ".".join(rest)
        for plain in (inner, inner.removeprefix(_BASE), _BASE + inner):  # as transformers 5 does
            if plain in known:
                return "".join(part + "." for part in parts[:start]), plain
    return None, None


def _common_prefix(found: Mapping[str, tuple[str | None, str | None]]) -> str:
    """What all names begin with, before a Llama's name; empty where one of them has nothing."""
    prefixes = {prefix for prefix, _ in found.values() if prefix is not None}
    if len(prefixes) != 1:
        return ""
    (prefix,) = prefixes
    return prefix if all(name.startswith(prefix) for name in found) else ""


def _tell_changes(names: Mapping[str, str], prefix: str, folder: Path) -> None:
    if prefix:
        wrapper = _WRAPPERS.get(prefix.split(".")[0])
        by = f" (of {wrapper})" if wrapper else ""
        tell(
            f"warning: {folder}: all {len(names)} names begin with {prefix!r}{by}: read without it"
        )
    inner = {target: name.removeprefix(prefix) for target, name in names.items()}
    changed = [(name, target) for target, name in inner.items() if name != target]
    if changed:
        name, target = changed[0]
        counts = f"{len(changed)} of {len(names)}"
        tell(f"warning: {folder}: {counts} names are changed: {name} is read as {target}")
