"""Names and layouts of a model's weights: Megatron-Core's torch_dist keys and Hugging Face's names.

One :class:`Weight` is one tensor of Megatron (of one layer) and the Hugging Face tensors it is made
of. Their shapes come from the :class:`ModelConfig` alone, so a missing, extra or misshapen tensor
is found before a byte is converted. Files may have other names for them: see :func:`known_names`.
"""

import collections
import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import torch

from megatron_ultralong.model.families.family import QK_NORMS
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.model.yarn import RopeScaling
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError, counted

Layout = Literal["whole", "qkv", "gate_up"]
Shape = tuple[int, ...]

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
_LAYERS = "decoder.layers."
_STATEFUL_MODULES = (
    "self_attention.core_attention",
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)


@dataclasses.dataclass(frozen=True)
class Weight:
    """One Megatron tensor of one layer, and the Hugging Face tensors that it is made of."""

    key: str
    """torch_dist key; the tensors of all layers are stacked under it, on a new first axis."""
    layer: int | None
    """Index on that axis; None for a tensor outside the layers."""
    names: tuple[str, ...]
    """Hugging Face names of its parts."""
    shapes: tuple[Shape, ...]
    layout: Layout = "whole"
    num_query_groups: int = 1

    @property
    def shape(self) -> Shape:
        """Shape of the Megatron tensor, without the layer axis: parts stand below each other."""
        return (sum(shape[0] for shape in self.shapes), *self.shapes[0][1:])

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def unstacked_key(self) -> str:
        """Its key in a checkpoint whose layers are not stacked: ``decoder.layers.3.…``."""
        if self.layer is None:
            return self.key
        return f"{_LAYERS}{self.layer}.{self.key.removeprefix(_LAYERS)}"

    @property
    def label(self) -> str:
        """Name for messages."""
        return self.key if self.layer is None else f"{self.key}[{self.layer}]"

    def stacked(self, num_layers: int) -> tuple[torch.Size, torch.Size, torch.Size]:
        """Where it begins in the tensor under its key, its shape there, and that tensor's."""
        axes = [(0, size, size) for size in self.shape]
        if self.layer is not None:
            axes.insert(0, (self.layer, 1, num_layers))
        start, shape, whole = map(torch.Size, zip(*axes, strict=True))
        return start, shape, whole

    def fuse(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The Megatron tensor made of the Hugging Face ``parts``; a single part is not copied."""
        if self.layout == "qkv":
            q, k, v = parts
            return fuse_qkv(q, k, v, self.num_query_groups)
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))

    def split(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The Hugging Face parts of a Megatron ``tensor``; the inverse of :meth:`fuse`."""
        rows = [shape[0] for shape in self.shapes]
        if self.layout == "qkv":
            return split_qkv(tensor, rows, self.num_query_groups)
        return tuple(tensor.split(rows))


class WeightSource(Protocol):
    """A model on disk, read one weight at a time, whatever its format."""

    format: str
    model: ModelConfig
    """Its shape."""
    rope_scaling: RopeScaling
    """What was done to its rotary frequencies."""

    def dtype(self, weight: Weight) -> torch.dtype:
        """Dtype that ``weight`` is stored in."""

    def read(self, weight: Weight) -> tuple[torch.Tensor, ...]:
        """The parts of ``weight``, in the order of ``weight.names``."""


def fuse_qkv(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_query_groups: int
) -> torch.Tensor:
    """Megatron's ``linear_qkv``: for every query group its queries, its key, its value.

    With 4 heads in 2 groups the rows are, head by head: ``q0 q1 k0 v0 q2 q3 k1 v1``.
    """
    # [groups, rows of the group, hidden]; of biases without the last
    grouped = [part.reshape(num_query_groups, -1, *part.shape[1:]) for part in (q, k, v)]
    return torch.cat(grouped, dim=1).reshape(-1, *q.shape[1:])


def split_qkv(
    qkv: torch.Tensor, rows: Sequence[int], num_query_groups: int
) -> tuple[torch.Tensor, ...]:
    """q, k and v with ``rows`` rows each; the inverse of :func:`fuse_qkv`."""
    grouped = qkv.reshape(num_query_groups, -1, *qkv.shape[1:])
    parts = grouped.split([count // num_query_groups for count in rows], dim=1)
    return tuple(part.reshape(-1, *qkv.shape[1:]) for part in parts)


def model_weights(model: ModelConfig) -> list[Weight]:
    """Every weight of ``model``, in the order of the forward pass."""
    hidden, vocabulary = model.hidden_size, model.vocab_size
    weights = [
        Weight("embedding.word_embeddings.weight", None, (EMBEDDING,), ((vocabulary, hidden),))
    ]
    for layer in range(model.num_layers):
        weights += _layer_weights(model, layer)
    weights.append(
        Weight("decoder.final_layernorm.weight", None, ("model.norm.weight",), ((hidden,),))
    )
    if model.untie_embeddings_and_output_weights:
        weights.append(Weight("output_layer.weight", None, (LM_HEAD,), ((vocabulary, hidden),)))
    return weights


def _layer_weights(model: ModelConfig, layer: int) -> list[Weight]:
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    queries = model.num_attention_heads * model.kv_channels
    keys = model.num_query_groups * model.kv_channels
    shapes: dict[str, tuple[Shape, ...]] = {
        "self_attention.linear_qkv.layer_norm_weight": ((hidden,),),
        "self_attention.linear_qkv.weight": ((queries, hidden), (keys, hidden), (keys, hidden)),
        "self_attention.linear_qkv.bias": ((queries,), (keys,), (keys,)),
        "self_attention.q_layernorm.weight": ((model.kv_channels,),),
        "self_attention.k_layernorm.weight": ((model.kv_channels,),),
        "self_attention.linear_proj.weight": ((hidden, queries),),
        "mlp.linear_fc1.layer_norm_weight": ((hidden,),),
        "mlp.linear_fc1.weight": ((ffn, hidden), (ffn, hidden)),
        "mlp.linear_fc2.weight": ((hidden, ffn),),
    }
    layouts: dict[int, Layout] = {1: "whole", 2: "gate_up", 3: "qkv"}
    return [
        Weight(
            *(_LAYERS + key, layer, tuple(f"model.layers.{layer}.{name}" for name in names)),
            *(shapes[key], layouts[len(names)], model.num_query_groups),
        )
        for key, names in model.family.layer.items()
    ]


def extra_state_keys(model: ModelConfig) -> list[str]:
    """Keys of the empty state objects that Transformer Engine's modules ask a checkpoint for."""
    layers, norms = model.num_layers, [key.removesuffix(".weight") for key in QK_NORMS]
    keys = [
        f"{_LAYERS}{module}._extra_state/shard_{layer}_{layers}"
        for module in (*_STATEFUL_MODULES, *(norms if model.family.qk_layernorm else ()))
        for layer in range(layers)
    ]
    return [*keys, "decoder.final_layernorm._extra_state/shard_0_1"]


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
    """Stored name of every tensor, by the name it has in a model: names that are none stay.

    transformers 5 finds names with one ``model.`` too many or too few, and so do we. Names of
    which all have another prefix, or that a wrapper has put its own into, are read without it, and
    that is said: transformers would find none of them, and fill the model with random numbers.

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
    """What seems to be wrong with names that are not the model's, and the fix; may be empty."""
    adapters = [name for name in stored if ".lora_" in name or ".base_layer." in name]
    if adapters:
        return (
            f"; {len(adapters)} of {counted(len(stored), 'tensor')} are an adapter's "
            f"({adapters[0]}): merge "
            "it into its model first, and save that"
        )
    quantised = [name for name in stored if name.endswith(_QUANTISED)]
    if quantised:
        return (
            f"; {len(quantised)} of {counted(len(stored), 'tensor')} are a quantized model's "
            f"({quantised[0]}): dequantize it first"
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
        f"; {count} of {counted(len(stored), 'tensor')} have the prefix {prefix!r}, the others "
        "do not: rename "
        f"those of the model (name.removeprefix({prefix!r})) and save them alone"
    )


def _parted(name: str, known: Collection[str]) -> tuple[str | None, str | None]:
    """Prefix of a stored name, and the model's name behind it; None and None: no such."""
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
    """What all names begin with, before a model's name; empty where one of them has nothing."""
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
