"""Meta's Llama folders, ``consolidated.*.pth`` and ``params.json``: names, and their reader."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.checkpoint.disk.folder import check_inside
from megatron_ultralong.checkpoint.formats.kind import PARAMS_FILE
from megatron_ultralong.checkpoint.formats.tensor_file import PickleFile
from megatron_ultralong.checkpoint.formats.weight_map import LM_HEAD, Weight, model_weights
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.model.yarn import RopeScaling, YarnConfig
from megatron_ultralong.program.aside import files_in
from megatron_ultralong.program.errors import InputError, counted, shown
from megatron_ultralong.program.json_file import JsonObject, read_json
from megatron_ultralong.program.pointers import check_no_pointer


@dataclasses.dataclass(frozen=True)
class MetaTensor:
    """Where a Hugging Face tensor is in Meta's files."""

    name: str
    axis: int | None
    """Axis that shards divide; None: every shard holds the whole tensor."""
    heads: str = ""
    """How many heads it has whose rotary dimensions have another order, a field of the model."""


_OUTSIDE = {
    "model.embed_tokens.weight": MetaTensor("tok_embeddings.weight", 0),
    "model.norm.weight": MetaTensor("norm.weight", None),
    "lm_head.weight": MetaTensor("output.weight", 0),
}
_LAYER = {
    "input_layernorm": MetaTensor("attention_norm", None),
    "self_attn.q_proj": MetaTensor("attention.wq", 0, "num_attention_heads"),
    "self_attn.k_proj": MetaTensor("attention.wk", 0, "num_query_groups"),
    "self_attn.v_proj": MetaTensor("attention.wv", 0),
    "self_attn.o_proj": MetaTensor("attention.wo", 1),
    "post_attention_layernorm": MetaTensor("ffn_norm", None),
    "mlp.gate_proj": MetaTensor("feed_forward.w1", 0),
    "mlp.up_proj": MetaTensor("feed_forward.w3", 0),
    "mlp.down_proj": MetaTensor("feed_forward.w2", 1),
}


def meta_tensor(name: str) -> MetaTensor:
    """Meta's place for the Hugging Face tensor ``name``.

    ``model.layers.3.self_attn.q_proj.weight`` is ``layers.3.attention.wq.weight``.
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    tensor = _LAYER[part]
    return dataclasses.replace(tensor, name=f"layers.{layer}.{tensor.name}.weight")


def to_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of q or k from Meta's rotary order to that of Hugging Face and Megatron.

    Meta rotates dimensions (0, 1), (2, 3), …; the others rotate (0, D/2), (1, D/2 + 1), …:
    the rows of a head of 4 go from ``0 1 2 3`` to ``0 2 1 3``.
    """
    hidden = weight.shape[-1]
    # [heads, D/2 pairs, 2, hidden] -> [heads, 2, D/2 pairs, hidden]
    return weight.reshape(num_heads, -1, 2, hidden).transpose(1, 2).reshape(-1, hidden)


def to_pairs(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """The inverse of :func:`to_halves`."""
    hidden = weight.shape[-1]
    return weight.reshape(num_heads, 2, -1, hidden).transpose(1, 2).reshape(-1, hidden)


def in_meta_order(name: str, tensor: torch.Tensor, model: ModelConfig) -> torch.Tensor:
    """The Hugging Face tensor ``name`` with its rows as Meta's files have them."""
    heads = meta_tensor(name).heads
    return to_pairs(tensor, getattr(model, heads)) if heads else tensor


_EMBEDDING = "tok_embeddings.weight"
_OUTPUT = "output.weight"
_GATE = "layers.0.feed_forward.w1.weight"
_BUFFERS = {"rope.freqs"}
_KEYS = frozenset(
    (
        *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "norm_eps", "rope_theta"),
        *("multiple_of", "ffn_dim_multiplier"),  # the tensors have the width that they make
        *("use_scaled_rope", "rope_scaling_factor", "max_batch_size", "max_seq_len"),
    )
)
"""Of ``params.json`` of a Llama; Meta's code takes no others than these and those of no effect."""
_HIGH_FREQ_FACTOR = 4.0
META_FACTOR = 8.0
"""Scale of the frequencies in Meta's code for Llama 3.1 and 3.3."""
_LARGEST_FACTOR = 32.0
_ORIGINAL_POSITIONS = 8192
"""That Llama 3 was trained with before its frequencies were scaled."""
_SMALL_MODEL = 3072
"""Hidden size up to which Llama 3 models scale their frequencies by 32, not 8."""


class MetaFolder:
    """Weights of a Llama in Meta's format, under Hugging Face's names and in its rotary order."""

    format = "Meta"

    def __init__(self, folder: str | Path) -> None:
        """Read parameters and the shards' lists of tensors, and check every name and shape.

        Raises:
            InputError: a file or tensor is missing, damaged, left over or of another shape.
        """
        self.folder = Path(folder)
        self.params = read_params(self.folder)
        self.files = _open_shards(self.folder)
        self.model = self._read_shape()
        self._check_keys()
        self.rope_scaling = _rope_scaling(self.params)
        self._check_tensors()

    @property
    def name(self) -> str:
        """Name of the model: the folder's."""
        return self.folder.resolve().name

    def dtype(self, weight: Weight) -> torch.dtype:
        """Dtype that ``weight`` is stored in."""
        return self.files[0].tensors[meta_tensor(weight.names[0]).name].dtype

    def read(self, weight: Weight) -> tuple[torch.Tensor, ...]:
        """The Hugging Face parts of ``weight``, their shards joined."""
        return tuple(self._read(meta_tensor(name)) for name in weight.names)

    def _read(self, tensor: MetaTensor) -> torch.Tensor:
        axis = self._axis(tensor)
        if axis is None or len(self.files) == 1:
            whole = self.files[0].read(tensor.name)
        else:
            whole = self._joined(tensor.name, axis)
        return to_halves(whole, getattr(self.model, tensor.heads)) if tensor.heads else whole

    def _joined(self, name: str, axis: int) -> torch.Tensor:
        """The shards' parts side by side; one part at a time is in memory besides."""
        info = self.files[0].tensors[name]
        shape = list(info.shape)
        shape[axis] *= len(self.files)
        whole = torch.empty(shape, dtype=info.dtype)
        for file, part in zip(self.files, whole.chunk(len(self.files), axis), strict=True):
            part.copy_(file.read(name))
        return whole

    def _axis(self, tensor: MetaTensor) -> int | None:
        """Llama 2 divides the embedding by columns, Llama 3 by rows."""
        if tensor.name == _EMBEDDING:
            narrow = self._info(_EMBEDDING)[1] != self.params["dim"]
            return 1 if narrow else 0
        return tensor.axis

    def _info(self, name: str) -> tuple[int, ...]:
        info = self.files[0].tensors.get(name)
        if info is None:
            raise InputError(
                f"{self.files[0].path} holds no tensor {name}: it is not a Llama in Meta's "
                "format, or the download is not complete"
            )
        return info.shape

    def _read_shape(self) -> ModelConfig:
        params, count = self.params, len(self.files)
        hidden = params.integer("dim", minimum=1)
        heads = params.integer("n_heads", minimum=1)
        embedding = self._info(_EMBEDDING)
        if len(embedding) != 2 or len(self._info(_GATE)) != 2:
            raise InputError(
                f"{self.files[0].path}: {_EMBEDDING} and {_GATE} must have two axes, not "
                f"{list(embedding)} and {list(self._info(_GATE))}"
            )
        rows, columns = embedding
        model = ModelConfig(
            num_layers=params.integer("n_layers"),
            hidden_size=hidden,
            ffn_hidden_size=self._info(_GATE)[0] * count,
            num_attention_heads=heads,
            num_query_groups=params.integer("n_kv_heads", 0) or heads,
            kv_channels=hidden // heads,
            vocab_size=rows * (count if columns == hidden else 1),
            norm_epsilon=params.number("norm_eps"),
            rotary_base=params.number("rope_theta", 10000.0),
            max_position_embeddings=_max_positions(params),
            untie_embeddings_and_output_weights=not self._is_tied(),
        )
        model.check(str(self.folder / PARAMS_FILE))
        return model

    def _check_keys(self) -> None:
        """Raise InputError for a key that may make it another model than tensors and shape say.

        Mistral's first files are of this format, and their ``sliding_window`` limits attention.
        """
        model = self.model
        same: dict[str, Any] = {
            "head_dim": model.kv_channels,
            "hidden_dim": model.ffn_hidden_size,
            "rope_high_freq_factor": _HIGH_FREQ_FACTOR,
        }
        for key, value in self.params.items():
            without_effect = value is None or value is False or value in (-1, same.get(key))
            if key in _KEYS or without_effect:
                continue
            expected = f"it must be {same.get(key)} or absent"
            if key not in same:
                expected = (
                    "Meta's code for Llama has no such key, so this may be another model, which "
                    "would compute other numbers here; remove the key if it changes nothing"
                )
            raise InputError(f"{self.params.where}: {key} is {shown(value)}: {expected}")

    def _is_tied(self) -> bool:
        """Whether the output is absent or a copy of the embedding, as in Llama 3.2's 1B and 3B."""
        first = self.files[0]
        if _OUTPUT not in first.tensors:
            return True
        if first.tensors[_OUTPUT].shape != first.tensors[_EMBEDDING].shape:
            return False
        return all(torch.equal(file.read(_OUTPUT), file.read(_EMBEDDING)) for file in self.files)

    def _check_tensors(self) -> None:
        expected = {*_BUFFERS, meta_tensor(LM_HEAD).name}
        for weight in model_weights(self.model):
            for name, shape in zip(weight.names, weight.shapes, strict=True):
                tensor = meta_tensor(name)
                expected.add(tensor.name)
                self._check_tensor(tensor, shape)
        for file in self.files:
            left_over = sorted(set(file.tensors) - expected)
            if left_over:
                raise InputError(
                    f"{file.path} holds tensor {left_over[0]}, that {PARAMS_FILE} leaves no place "
                    "for: it is not the plain Llama that params.json says"
                )

    def _check_tensor(self, tensor: MetaTensor, shape: tuple[int, ...]) -> None:
        axis, count = self._axis(tensor), len(self.files)
        part = tuple(
            size // count if position == axis else size for position, size in enumerate(shape)
        )
        if axis is not None and shape[axis] % count:
            raise InputError(
                f"{self.folder}: {tensor.name} does not divide into {counted(count, 'shard')}"
            )
        for file in self.files:
            found = file.tensors.get(tensor.name)
            if found is None or found.shape != part:
                raise InputError(
                    f"{file.path}: tensor {tensor.name} is "
                    f"{'missing' if found is None else list(found.shape)}, {PARAMS_FILE} and "
                    f"{counted(count, 'shard')} make it {list(part)}: shards are missing or of "
                    "another model"
                )


def read_params(folder: Path) -> JsonObject:
    """``params.json`` of ``folder``.

    Raises:
        InputError: no such file, or damaged.
    """
    path = folder / PARAMS_FILE
    if not path.is_file():
        raise InputError(f"{folder} has no {PARAMS_FILE}: it is not a Meta folder")
    check_inside(path, folder)
    values = read_json(path, hint="download it again")
    if "dim" not in values:
        raise InputError(f"{path} must hold a Llama's parameters, with dim")
    return values


def _open_shards(folder: Path) -> list[PickleFile]:
    paths = files_in(folder, "consolidated.*.pth")
    wanted = [f"consolidated.{number:02d}.pth" for number in range(len(paths))]
    if not paths or [path.name for path in paths] != wanted:
        raise InputError(
            f"{folder} holds {[path.name for path in paths]}, {wanted or ['consolidated.00.pth']} "
            "are needed: download the missing shards"
        )
    for path in paths:
        check_inside(path, folder)
        check_no_pointer(path)
    return [PickleFile(path) for path in paths]


def _max_positions(params: JsonObject) -> int:
    """Positions the weights were trained for, which params.json does not say.

    Meta's own models have 131,072 with a factor of 8 or 32; larger ones are those of extended
    models, exported here: a factor of 128 over 8,192 has 1,048,576.
    """
    if params.boolean("use_scaled_rope", False):
        factor = _stated_factor(params) or META_FACTOR
        return int(factor * _ORIGINAL_POSITIONS) if factor > _LARGEST_FACTOR else 131072
    return 8192 if params.number("rope_theta", 10000.0) == 500000.0 else 4096


def _stated_factor(params: JsonObject) -> float | None:
    factor: float | None = params.number("rope_scaling_factor", None, minimum=1, maximum=1e9)
    return factor


def _rope_scaling(params: JsonObject) -> RopeScaling:
    """Llama 3.1 and later scale frequencies by constants of Meta's code, not of params.json."""
    if not params.boolean("use_scaled_rope", False):
        return None
    factor = _stated_factor(params)
    if factor is None and params["dim"] <= _SMALL_MODEL:
        raise InputError(
            f"{params.where}: use_scaled_rope is set without rope_scaling_factor, and "
            f"models of dim {params['dim']} exist with other factors than 8: add "
            '"rope_scaling_factor": 32.0 for Llama 3.2 1B and 3B'
        )
    return YarnConfig(factor or META_FACTOR)


def needs_factor(hidden_size: int, factor: float | None) -> bool:
    """Whether ``params.json`` has to state the factor: Meta's own files never do."""
    return factor is not None and (factor != META_FACTOR or hidden_size <= _SMALL_MODEL)


def hugging_face_defaults(model: ModelConfig) -> dict[str, Any]:
    """Keys of a Hugging Face ``config.json`` that Meta's files imply."""
    values: dict[str, Any] = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    special = {128256: (128000, 128001), 32000: (1, 2)}.get(model.vocab_size)
    if special:
        values["bos_token_id"], values["eos_token_id"] = special
    return values
