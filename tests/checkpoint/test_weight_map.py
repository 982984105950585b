"""Fuse and split are inverses for any shape, and put every row where Megatron looks for it."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ultralong.checkpoint.formats.weight_map import fuse_qkv, model_weights
from megatron_ultralong.model.shape import ModelConfig, layer_parameters, num_parameters

shapes = st.builds(
    ModelConfig,
    num_layers=st.integers(1, 4),
    hidden_size=st.integers(1, 9),
    ffn_hidden_size=st.integers(1, 9),
    num_attention_heads=st.just(0),
    num_query_groups=st.integers(1, 4),
    kv_channels=st.integers(1, 3).map(lambda half: 2 * half),
    vocab_size=st.integers(1, 9),
    norm_epsilon=st.just(1e-5),
    rotary_base=st.just(10000.0),
    max_position_embeddings=st.just(8),
    untie_embeddings_and_output_weights=st.booleans(),
)


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    model = draw(shapes)
    heads = model.num_query_groups * draw(st.integers(1, 4))
    return ModelConfig(**{**vars(model), "num_attention_heads": heads})


@given(models())
@settings(max_examples=50, deadline=None)
def test_split_inverts_fuse_for_every_weight(model: ModelConfig) -> None:
    for weight in model_weights(model):
        parts = [torch.rand(shape) for shape in weight.shapes]
        fused = weight.fuse(parts)
        assert tuple(fused.shape) == weight.shape
        back = weight.split(fused)
        assert all(torch.equal(a, b) for a, b in zip(parts, back, strict=True))


@given(models())
@settings(max_examples=50, deadline=None)
def test_every_tensor_has_one_place(model: ModelConfig) -> None:
    weights = model_weights(model)
    names = [name for weight in weights for name in weight.names]
    places = [(weight.key, weight.layer) for weight in weights]
    assert len(set(names)) == len(names)
    assert len(set(places)) == len(places)
    assert len(names) == 9 * model.num_layers + 2 + model.untie_embeddings_and_output_weights
    assert sum(weight.numel for weight in weights) == num_parameters(model)
    assert sum(weight.numel for weight in weights if weight.layer == 0) == layer_parameters(model)


def test_qkv_rows_stand_by_query_group() -> None:
    # 4 heads in 2 groups, one row a head; queries 0-3, keys 10-11, values 20-21
    q, k, v = (torch.tensor(rows).reshape(-1, 1) for rows in ([0, 1, 2, 3], [10, 11], [20, 21]))
    assert fuse_qkv(q, k, v, 2).flatten().tolist() == [0, 1, 10, 20, 2, 3, 11, 21]
