"""Shapes of models, those of published models by name, and the number of their weights."""

import dataclasses
from typing import Annotated, Final

from megatron_ultralong.model.families import FAMILIES
from megatron_ultralong.model.families.family import Family
from megatron_ultralong.program.errors import InputError, not_known, shown
from megatron_ultralong.program.fields import Range, check_ranges

MOST_POSITIONS: Final = 2**40
"""Of a model; rows have fewer."""
MOST_IDS: Final = 2**27
"""Of a vocabulary."""
HeadDim = Annotated[int, Range(2, 2**14)]
"""Size of one head; an even number, see :func:`check_even`."""
RotaryBase = Annotated[float, Range(above=1, most=1e30)]
"""What rotary frequencies are powers of."""
Positions = Annotated[int, Range(1, MOST_POSITIONS)]
"""Of a model."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a model, in Megatron-LM's words; read from a checkpoint, never typed.

    The ranges are far above any model: what is larger is none, and would take the memory or the
    time of the machine before its weights are found missing.
    """

    num_layers: Annotated[int, Range(1, 4096)]
    hidden_size: Annotated[int, Range(1, 2**20)]
    ffn_hidden_size: Annotated[int, Range(1, 2**23)]
    num_attention_heads: Annotated[int, Range(1, 2**16)]
    num_query_groups: Annotated[int, Range(1, 2**16)]
    """Key and value heads."""
    kv_channels: HeadDim
    """Size of one head."""
    vocab_size: Annotated[int, Range(1, MOST_IDS)]
    """Rows of the embedding, not padded."""
    norm_epsilon: Annotated[float, Range(above=0, most=1)]
    """Added to the mean of squares in a norm."""
    rotary_base: RotaryBase
    """What rotary frequencies are powers of."""
    max_position_embeddings: Positions
    """Positions that the weights were trained for."""
    untie_embeddings_and_output_weights: bool
    model_type: str = "llama"
    """Of its family."""

    @property
    def family(self) -> Family:
        """What it differs by from other families of its shape."""
        return FAMILIES[self.model_type]

    def check(self, where: str) -> None:
        """Raise InputError, naming the file ``where``, for what no model can be.

        Weights are compared with the shape before anything is built of it, so that memory is
        bounded by the files; this bounds what the comparison itself takes.
        """
        check_ranges(self, where=where)
        if self.model_type not in FAMILIES:
            raise InputError(f"{where}: {not_known('model_type', self.model_type, FAMILIES)}")
        if type(self.untie_embeddings_and_output_weights) is not bool:
            raise InputError(
                f"{where}: untie_embeddings_and_output_weights is "
                f"{shown(self.untie_embeddings_and_output_weights)}, it must be true or false"
            )
        if self.num_attention_heads % self.num_query_groups:
            raise InputError(
                f"{where}: num_attention_heads ({self.num_attention_heads}) must be divisible by "
                f"num_key_value_heads ({self.num_query_groups}): every group has as many heads; "
                "correct one"
            )
        check_even(self.kv_channels, where)


def check_even(head_dim: int, where: str) -> None:
    """Raise InputError, naming the file ``where``, for a head that has no pairs of channels."""
    if head_dim % 2:
        raise InputError(
            f"{where}: head_dim is {head_dim}, it must be even: rotary frequencies turn pairs of "
            "channels; write the size that the weights have"
        )


MODELS: dict[str, ModelConfig] = {
    name: ModelConfig(**family.published(name))
    for family in FAMILIES.values()
    for name in family.models
}
"""Shapes as in Meta's and Hugging Face's ``config.json``, and of the demo's model."""


def model_of_recipe(recipe: str) -> str:
    """Name of the model that a recipe is made for: ``llama3.1-8b-4m -> llama3.1-8b``.

    Raises:
        InputError: the recipe names none.
    """
    for name in MODELS:
        if recipe.startswith(name):
            return name
    raise InputError(f"recipe {recipe!r} names no model: say --model, one of {', '.join(MODELS)}")


def model_by_name(name: str, flag: str = "--model") -> ModelConfig:
    """The shape of a published model, which ``flag`` names.

    Raises:
        InputError: it is not known.
    """
    if name not in MODELS:
        raise InputError(
            f"{not_known(flag, name, MODELS)}; it is not a folder either: name one of these, "
            "a Hugging Face folder or a checkpoint"
        )
    return MODELS[name]


def layer_matrices(model: ModelConfig, tensor_parallel_size: int) -> tuple[int, int, int, int]:
    """Weights of one layer's matrices on a rank: q, k, v; out of attention; gate, up; down."""
    queries = model.num_attention_heads * model.kv_channels
    keys = model.num_query_groups * model.kv_channels
    widths = (queries + 2 * keys, queries, 2 * model.ffn_hidden_size, model.ffn_hidden_size)
    qkv, out, up, down = (model.hidden_size * width // tensor_parallel_size for width in widths)
    return qkv, out, up, down


def layer_vectors(model: ModelConfig, tensor_parallel_size: int) -> tuple[int, ...]:
    """Weights of one layer's norms and biases on a rank."""
    norms = (model.hidden_size, model.hidden_size)
    heads = model.num_attention_heads + 2 * model.num_query_groups
    bias = (heads * model.kv_channels // tensor_parallel_size,)
    of_heads = (model.kv_channels, model.kv_channels)  # whole on every rank
    return (
        *norms,
        *(bias if model.family.add_qkv_bias else ()),
        *(of_heads if model.family.qk_layernorm else ()),
    )


def layer_parameters(model: ModelConfig, tensor_parallel_size: int = 1) -> int:
    """Weights of one layer on a rank."""
    matrices = sum(layer_matrices(model, tensor_parallel_size))
    return matrices + sum(layer_vectors(model, tensor_parallel_size))


def part_parameters(
    model: ModelConfig,
    num_layers: int,
    tensor_parallel_size: int = 1,
    *,
    is_first: bool = True,
    is_last: bool = True,
) -> int:
    """Weights of a rank that has ``num_layers`` layers, its part of the vocabulary included.

    Where embedding and output share their weights, a last part that is not the first has a copy.
    """
    words = model.vocab_size // tensor_parallel_size * model.hidden_size
    count = num_layers * layer_parameters(model, tensor_parallel_size)
    if is_first:
        count += words
    if is_last:
        count += model.hidden_size  # the final norm
        if model.untie_embeddings_and_output_weights or not is_first:
            count += words
    return count


def num_parameters(model: ModelConfig) -> int:
    """Weights of the whole model."""
    return part_parameters(model, model.num_layers)
