"""Numbers of a model's weights: of its matrices, a layer, a part of it, and the whole."""

from megatron_ultralong.model.shape import ModelConfig


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
