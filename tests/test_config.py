from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.config.generate import GenerateConfig
from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.plain_values import from_dict
from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from megatron_ultralong.config.rope import RopeConfig
from megatron_ultralong.config.run import MemoryConfig
from megatron_ultralong.config.training import DataConfig, PretrainConfig
from megatron_ultralong.evaluation.models.facts import named_folders
from megatron_ultralong.evaluation.options import ModelsConfig
from megatron_ultralong.generation.early_checks import check_generation
from megatron_ultralong.model.yarn import LinearConfig, NtkConfig, RopeScaling, YarnConfig
from megatron_ultralong.program.errors import InputError
from tests.models import write_llama
from tests.shapes import llama_shape

MODEL = llama_shape(layers=4, hidden=64, ffn=128, vocabulary=256, positions=64)
RUN = PretrainConfig(load="model", train_iters=1, data=DataConfig(data_path="rows"))


@given(st.integers(1, 10_000), st.integers(1, 16), st.integers(1, 8), st.booleans())
def test_sequence_lengths_offered_in_a_refusal_are_accepted(
    seq_length: int, cp: int, tp: int, sequence_parallel: bool
) -> None:
    parallel = ParallelConfig(tp, 1, cp, sequence_parallel=sequence_parallel)
    try:
        parallel.check_seq_length(seq_length)
    except InputError as error:
        for offered in str(error).split("; use ")[1].split(" or "):
            parallel.check_seq_length(int(offered))
    else:
        assert cp == 1 or seq_length % (2 * cp) == 0
        assert not sequence_parallel or seq_length % tp == 0


_FACTORS = st.sampled_from([1.0, 1.5, 2.0, 8.0])
_SCALINGS = st.one_of(
    st.none(),
    st.builds(LinearConfig, _FACTORS),
    st.builds(NtkConfig, _FACTORS),
    st.builds(YarnConfig, _FACTORS, st.sampled_from([64, 512, 8192])),
)
"""Of checkpoints."""


@given(
    st.builds(
        RopeConfig,
        rope_scaling=st.sampled_from(["yarn", "ntk", "linear", "none", "keep"]),
        rope_scaling_factor=_FACTORS,
        original_max_position_embeddings=st.sampled_from([64, 512, 1024, 8192]),
    ),
    _SCALINGS,
    st.integers(64, 20_000),
    st.integers(2, 100_000),
)
def test_flags_offered_for_longer_rows_are_accepted(
    rope: RopeConfig, scaling: RopeScaling, positions: int, length: int
) -> None:
    """Whatever the checkpoint's original context is, and without a warning of another one."""
    config = dataclasses.replace(RUN, rope=rope, data=DataConfig("rows", seq_length=length))
    try:
        config.check_positions(positions, scaling)
    except InputError as error:
        flags = str(error).split("or give ")[1].split()
        values = dict(zip(flags[::2], flags[1::2], strict=True))
        changed = {flag[2:].replace("-", "_"): value for flag, value in values.items()}
        kinds = {"rope_scaling": str, "rope_scaling_factor": float}
        better = dataclasses.replace(
            rope, **{name: kinds.get(name, int)(value) for name, value in changed.items()}
        )
        assert all(getattr(rope, name) != getattr(better, name) for name in changed), "no more"
        dataclasses.replace(config, rope=better).check_positions(positions, scaling)
        if better.rope_scaling == "yarn":
            assert better.warnings(positions, scaling) == better.beyond_paper


def test_a_base_of_another_context_than_the_recipes_is_told_its_flag() -> None:
    rope = dataclasses.replace(PRETRAIN_RECIPES["demo-cpu"]().rope, rope_scaling_factor=2.0)
    config = dataclasses.replace(RUN, rope=rope, data=DataConfig("rows", seq_length=2048))
    with pytest.raises(InputError) as error:
        config.check_positions(1024, None)
    assert str(error.value).endswith(
        "is beyond the 1024 positions of rope_scaling 'yarn' (rope_scaling_factor 2 over "
        "original_max_position_embeddings 512): rows must fit the rotary embedding; prepare rows "
        "of 1024, or give --original-max-position-embeddings 1024"
    )


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (
            ParallelConfig(context_parallel_size=3),
            r"seq_length \(100\) must be divisible by 2 \* context_parallel_size \(6\).* 96 or 102",
        ),
        (
            ParallelConfig(2, 1, 4, sequence_parallel=True),
            r"2 \* context_parallel_size \* tensor_model_parallel_size \(16\).* use 96 or 112",
        ),
    ],
)
def test_sequence_length_must_divide(parallel: ParallelConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parallel.check_seq_length(100)


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (ParallelConfig(3), r"num_attention_heads \(4\) .* tensor_model_parallel_size \(3\)"),
        (
            ParallelConfig(4),
            r"num_query_groups \(2\) .* \(4\).* --tensor-model-parallel-size 1 or 2",
        ),
        (ParallelConfig(sequence_parallel=True), "tensor_model_parallel_size is 1: use --no-seq"),
        (ParallelConfig(1, 3), r"num_layers \(4\) .* pipeline_model_parallel_size \(3\)"),
        (
            ParallelConfig(1, 1, 4, cp_comm_type="a2a"),
            r"among 4 ranks, and a rank has 2 key heads .*hierarchical-context-parallel-sizes 2 2$",
        ),
        (
            ParallelConfig(1, 1, 4, "a2a+p2p", (4, 1)),
            "among 4 ranks, and a rank has 2 key heads",
        ),
        (
            ParallelConfig(1, 1, 4, "a2a+p2p"),
            r"\(none\) must be two numbers whose product is .*\(4\)",
        ),
        (ParallelConfig(1, 1, 4, "a2a+p2p", (2, 3)), r"sizes \(2 3\) must be two numbers"),
        (
            ParallelConfig(1, 1, 4, "p2p", (2, 2)),
            r"\(2 2\) must .* be left out with others; it is p2p",
        ),
    ],
)
def test_model_must_divide(parallel: ParallelConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parallel.check_model(MODEL)


@pytest.mark.parametrize(
    ("config", "world_size", "message"),
    [
        (dataclasses.replace(RUN, load=""), 1, "--load is needed"),
        (dataclasses.replace(RUN, data=DataConfig()), 1, "--data-path is needed"),
        (dataclasses.replace(RUN, train_iters=0), 1, "train_iters must be at least 1, not 0"),
        (
            dataclasses.replace(RUN, parallel=ParallelConfig(cp_assignment="balanced")),
            1,
            "cp_assignment 'balanced' needs document_mask 'block', not 'none'",
        ),
        (
            dataclasses.replace(RUN, optimizer=OptimizerConfig(lr_warmup_iters=1)),
            1,
            r"lr_warmup_iters \(1\) must be below train_iters \(1\)",
        ),
        (
            dataclasses.replace(RUN, parallel=ParallelConfig(2, 1, 2)),
            6,
            r"world_size \(6\) must be divisible by .* \(2 x 1 x 2 = 4\)",
        ),
        (
            dataclasses.replace(RUN, global_batch_size=6),
            4,
            r"global_batch_size \(6\) .* \(1 x 4 = 4\): use 8",
        ),
        (
            dataclasses.replace(
                RUN,
                micro_batch_size=2,
                global_batch_size=2,
                data=DataConfig("rows", document_mask="block"),
            ),
            1,
            "document_mask 'block' needs micro_batch_size 1, not 2",
        ),
        (
            dataclasses.replace(RUN, memory=MemoryConfig("none", offload_activations=True)),
            1,
            "offload_activations needs recompute_granularity 'keep_attention' or 'full'",
        ),
    ],
)
def test_rules_between_fields(config: PretrainConfig, world_size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config.check(world_size)


def test_rows_beyond_the_rotary_embedding_are_refused() -> None:
    rope = RopeConfig(
        rope_scaling="yarn", rope_scaling_factor=4.0, original_max_position_embeddings=64
    )
    config = dataclasses.replace(RUN, rope=rope, data=DataConfig("rows", seq_length=257))
    with pytest.raises(
        InputError, match=r"seq_length \(257\) is beyond the 256 .*-rope-scaling-factor 5"
    ):
        config.check_positions(64, None)
    dataclasses.replace(config, data=DataConfig("rows", seq_length=256)).check_positions(64, None)


@pytest.mark.parametrize("name", PRETRAIN_RECIPES)
def test_recipes_survive_yaml_and_hold_their_own_rules(name: str) -> None:
    recipe = PRETRAIN_RECIPES[name]()
    assert from_dict(PretrainConfig, dataclasses.asdict(recipe)) == recipe
    named = dataclasses.replace(
        recipe, load="model", data=dataclasses.replace(recipe.data, data_path="rows")
    )
    named.check(recipe.parallel.model_parallel_size)
    recipe.parallel.check_seq_length(recipe.data.seq_length)
    raw = recipe.rope.original_max_position_embeddings
    recipe.check_positions(raw, None)
    assert recipe.rope.max_positions(raw, None) == recipe.data.seq_length
    # Llama 3.1's own block, x8 over 8,192, says the same context.
    scaled = YarnConfig(8.0, raw)
    assert recipe.rope.max_positions(131072, scaled) == recipe.data.seq_length
    assert recipe.rope.warnings(131072, scaled) == ()


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(
        InputError, match="key 'seq_lenght' is not known; perhaps you meant 'seq_length'"
    ):
        from_dict(PretrainConfig, {"data": {"seq_lenght": 1}})


def test_pipeline_stages_hold_these_layers() -> None:
    first, last = "num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"

    def stages(num_layers: int, size: int, **ends: int) -> list[int]:
        parallel = ParallelConfig(pipeline_model_parallel_size=size, **ends)
        return parallel.stage_layers(num_layers)

    assert stages(32, 4) == [8, 8, 8, 8]
    assert stages(32, 4, **{first: 6, last: 8}) == [6, 9, 9, 8]
    assert stages(4, 2, **{first: 1}) == [1, 3]
    assert stages(4, 2, **{first: 1, last: 3}) == [1, 3]
    assert stages(4, 1) == [4]
    for ends, message in (
        ({first: 7}, "leaves 25 layers for 3 stages"),
        ({first: 16, last: 16}, "leaves 0 layers for 2 stages"),
        ({last: -1}, "pipeline_model_parallel_size is 4"),
    ):
        with pytest.raises(InputError, match=message):
            stages(32, 4, **ends)
    with pytest.raises(InputError, match="pipeline_model_parallel_size is 1"):
        stages(32, 1, **{last: 8})


def test_interleaved_stages_hold_chunks_of_as_many_layers() -> None:
    parallel = ParallelConfig(
        pipeline_model_parallel_size=4, num_virtual_stages_per_pipeline_rank=2
    )
    assert parallel.stage_layers(32) == [8, 8, 8, 8]
    # As Megatron-Core's schedule: 2 * 3 + 4 passes to warm up, and the one that runs.
    assert [parallel.passes_under_way(stage, 8) for stage in range(4)] == [11, 9, 7, 5]
    assert parallel.passes_under_way(0, 4) == 8  # all there are
    plain = dataclasses.replace(parallel, num_virtual_stages_per_pipeline_rank=1)
    assert [plain.passes_under_way(stage, 8) for stage in range(4)] == [4, 3, 2, 1]
    parallel.check_microbatches(8)
    for num_microbatches in (3, 5, 6):
        with pytest.raises(InputError, match=r"groups of 4 .* at least pipeline_model_parallel"):
            parallel.check_microbatches(num_microbatches)
    with pytest.raises(InputError, match=r"\(7, 7, 7, 7\) must be divisible by num_virtual_stages"):
        parallel.stage_layers(28)
    with pytest.raises(InputError, match="pipeline_model_parallel_size is 1: leave it 1"):
        ParallelConfig(num_virtual_stages_per_pipeline_rank=2).stage_layers(32)
    with pytest.raises(
        InputError, match="needs num_virtual_stages_per_pipeline_rank of at least 2"
    ):
        ParallelConfig(microbatch_group_size_per_virtual_pipeline_stage=4).check_microbatches(8)


OF_TRAINING: dict[str, Any] = {
    "cp_assignment": "balanced",
    "num_virtual_stages_per_pipeline_rank": 2,
    "microbatch_group_size_per_virtual_pipeline_stage": 2,
}
OF_ANY_PASS = {
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"),
    *("cp_comm_type", "hierarchical_context_parallel_sizes", "sequence_parallel"),
    *("distributed_timeout_minutes", "num_layers_in_first_pipeline_stage"),
    "num_layers_in_last_pipeline_stage",
}


def test_what_is_of_training_alone_is_refused_by_what_has_no_backward_pass(tmp_path: Path) -> None:
    """`generate --cp-assignment balanced` did nothing without a word. A new field is decided."""
    fields = {field.name for field in dataclasses.fields(ParallelConfig)}
    assert fields == {*OF_TRAINING, *OF_ANY_PASS}
    write_llama(tmp_path / "hf", num_hidden_layers=2)
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "base"))
    load = str(tmp_path / "base")
    for name, value in OF_TRAINING.items():
        parallel = ParallelConfig(**{name: value})
        message = f"{name} {value} is of training alone: .*; leave --{name.replace('_', '-')} out"
        with pytest.raises(InputError, match=message):
            named_folders(ModelsConfig(load=(load,), parallel=parallel), 1)
        with pytest.raises(InputError, match=message):
            check_generation(GenerateConfig(load=load, prompt=("a",), parallel=parallel), 1)
