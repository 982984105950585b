"""Real Megatron-Core reads what is written here, and what it writes is read here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers import AutoModelForCausalLM

from megatron_ultralong.checkpoint.convert.report import inspect
from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint, verify
from megatron_ultralong.checkpoint.disk.folder import iteration_folder, write_latest
from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.config.convert import (
    ExportConfig,
    ImportConfig,
    InspectConfig,
    VerifyConfig,
)
from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.training.optimizer import build_optimizer, wrap_model
from tests.checkpoint.llama import save_llama
from tests.ranks import run_on_ranks

PADDED = 144
"""Rows of the embedding in Megatron's models here; the tokenizer has 130."""
TOKENS = torch.arange(48).reshape(1, -1) * 11 % 130


def build(
    checkpoint: Path,
    parallel: ParallelConfig,
    vocab_size: int,
    dtype: torch.dtype = torch.float32,
) -> GPTModel:
    """Megatron's own model, with its own attention and rotary embedding."""
    model = load_metadata(checkpoint).model
    config = TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        layernorm_epsilon=model.norm_epsilon,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        use_cpu_initialization=True,
        apply_rope_fusion=False,
    )
    return GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=vocab_size,
        max_sequence_length=256,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=False,
        share_embeddings_and_output_weights=not model.untie_embeddings_and_output_weights,
        position_embedding_type="rope",
        rotary_base=model.rotary_base,
    )


def load(model: GPTModel, folder: Path, strict: str) -> None:
    state = {"model": model.sharded_state_dict(metadata={"singleton_local_shards": False})}
    loaded = dist_checkpointing.load(
        sharded_state_dict=state, checkpoint_dir=str(folder), strict=strict
    )
    model.load_state_dict(loaded["model"])


def logits(checkpoint: Path, parallel: ParallelConfig, strict: str) -> torch.Tensor:
    with parallel_groups(parallel, seed=1), torch.no_grad():
        model = build(checkpoint, parallel, 130).eval()
        load(model, checkpoint / "release", strict)
        positions = torch.arange(TOKENS.shape[1]).reshape(1, -1)
        result: torch.Tensor = model(TOKENS, positions, None)
        return result


def resave(source: Path, folder: Path, parallel: ParallelConfig, one_by_one: bool = False) -> None:
    """Load into Megatron's model on these ranks, and let Megatron save it.

    It stacks the layers of a weight under one key, or writes them one by one.
    """
    with parallel_groups(parallel, seed=1):
        model = build(source, parallel, PADDED)
        load(model, source / "release", "log_unexpected")
        dist_checkpointing.save(
            sharded_state_dict={
                "model": model.sharded_state_dict(metadata={"singleton_local_shards": one_by_one})
            },
            checkpoint_dir=str(folder),
            content_metadata={"singleton_local_shards": one_by_one},
        )


def save_training(source: Path, folder: Path) -> None:
    """A bf16 training checkpoint: the optimizer's states are spread over two replicas."""
    metadata = {"distrib_optim_sharding_type": "fully_reshardable", "singleton_local_shards": False}
    with parallel_groups(ParallelConfig(), seed=1):
        model = build(source, ParallelConfig(), PADDED, torch.bfloat16)
        load(model, source / "release", "log_unexpected")
        # Megatron's torch norms leave their weights in float32
        wrapped = wrap_model([model.bfloat16()])
        config = OptimizerConfig(lr=0.0, weight_decay=0.0)  # a step that changes no weight
        optimizer = build_optimizer(wrapped, config, torch.bfloat16)
        for chunk in wrapped:
            chunk.zero_grad_buffer()
        optimizer.step()
        weights = model.sharded_state_dict(metadata={**metadata})
        states = optimizer.sharded_state_dict(weights, metadata={**metadata})
        dist_checkpointing.save(
            sharded_state_dict={"model": weights, "optimizer": states, "iteration": 40},
            checkpoint_dir=str(folder),
            content_metadata={**metadata},
        )


def on_two_ranks(folder: Path) -> torch.Tensor:
    """All that two ranks have to show, in one start of them; rank results are equal."""
    tensor = ParallelConfig(tensor_model_parallel_size=2)
    pipeline = ParallelConfig(pipeline_model_parallel_size=2)
    untied, tied = folder / "untied", folder / "tied"
    resave(untied, iteration_folder(folder / "untied-run", 10), tensor)
    resave(untied, iteration_folder(folder / "untied-run", 20), pipeline)
    resave(untied, iteration_folder(folder / "untied-run", 30), tensor, one_by_one=True)
    save_training(untied, iteration_folder(folder / "untied-run", 40))
    # the last stage has a copy of the embedding
    resave(tied, iteration_folder(folder / "tied-run", 20), pipeline)
    return logits(folder / "untied", tensor, "log_unexpected")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch_dist")
    for name in ("untied", "tied"):
        save_llama(folder / f"{name}-hf", tied=name == "tied")
        import_checkpoint(ImportConfig(folder / f"{name}-hf", folder / name))
        run = folder / f"{name}-run"
        shutil.copytree(folder / name, run, ignore=shutil.ignore_patterns("release"))
        for iteration in (10, 20, 30, 40):
            iteration_folder(run, iteration).mkdir()
        write_latest(run, 20)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, torch.Tensor]:
    """transformers' logits."""
    with torch.no_grad():
        return {
            name: save_llama(folder / "again", tied=name == "tied")(TOKENS).logits
            for name in ("untied", "tied")
        }


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> list[torch.Tensor]:
    return run_on_ranks(2, on_two_ranks, folder)


@pytest.mark.parametrize("name", ["untied", "tied"])
@pytest.mark.parametrize("strict", ["assume_ok_unexpected", "log_unexpected"])
def test_megatron_computes_what_transformers_computes(
    folder: Path, expected: dict[str, torch.Tensor], name: str, strict: str
) -> None:
    found = logits(folder / name, ParallelConfig(), strict)
    # float32: sums of 96 products in another order
    torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=0)


def test_megatron_computes_it_at_tensor_parallel_2(
    two_ranks: list[torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    for found in two_ranks:
        torch.testing.assert_close(found, expected["untied"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "iteration"), [("untied", 10), ("untied", 20), ("untied", 30), ("tied", 20)]
)
def test_any_layout_is_exported_bit_for_bit(
    folder: Path, tmp_path: Path, two_ranks: list[torch.Tensor], name: str, iteration: int
) -> None:
    report = export_checkpoint(
        ExportConfig(folder / f"{name}-run", tmp_path / "out", iteration=iteration)
    )
    assert report.iteration == iteration
    verify(VerifyConfig(folder / f"{name}-hf", tmp_path / "out"))


@pytest.mark.parametrize(("name", "iteration"), [("untied", 10), ("tied", 20)])
def test_rows_that_megatron_pads_with_are_not_exported(
    folder: Path,
    tmp_path: Path,
    two_ranks: list[torch.Tensor],
    expected: dict[str, torch.Tensor],
    name: str,
    iteration: int,
) -> None:
    source = MegatronCheckpoint(folder / f"{name}-run", iteration)
    assert source.tensors.tensors["embedding.word_embeddings.weight"].size[0] == PADDED
    export_checkpoint(ExportConfig(folder / f"{name}-run", tmp_path / "out", iteration=iteration))
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert model.config.vocab_size == 130
    assert model.get_input_embeddings().weight.shape[0] == 130
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, expected[name])


def test_two_paddings_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "untied", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "release")
    target = iteration_folder(tmp_path / "run", 10)
    target.mkdir()
    with parallel_groups(ParallelConfig(), seed=1):
        model = build(folder / "untied", ParallelConfig(), PADDED)
        output = model.output_layer.weight
        output.data = torch.cat([output.data, output.data[:16]])
        state = {"model": model.sharded_state_dict(metadata={"singleton_local_shards": False})}
        dist_checkpointing.save(sharded_state_dict=state, checkpoint_dir=str(target))
    write_latest(tmp_path / "run", 10)
    with pytest.raises(
        InputError, match=r"word_embeddings\.weight has 144 rows and output_layer\.weight has 160"
    ):
        export_checkpoint(ExportConfig(tmp_path / "run", tmp_path / "out"))


def test_a_training_checkpoint_is_exported(
    folder: Path, tmp_path: Path, two_ranks: list[torch.Tensor]
) -> None:
    run = folder / "untied-run"
    values = inspect(InspectConfig(run, 40))
    assert values["optimizer_state"]
    assert values["dtype"] == "bfloat16"
    export_checkpoint(ExportConfig(run, tmp_path / "out", iteration=40))
    verify(VerifyConfig(folder / "untied-hf", tmp_path / "out", dtype="bf16"))


def test_inspect_tells_the_layout(folder: Path, two_ranks: list[torch.Tensor]) -> None:
    run = folder / "untied-run"
    latest = inspect(InspectConfig(run))
    assert (latest["iteration"], latest["iterations"]) == (20, [10, 20, 30, 40])
    sizes = {
        iteration: inspect(InspectConfig(run, iteration))["written_at_tensor_model_parallel_size"]
        for iteration in (10, 20, 30)
    }
    assert sizes == {10: 2, 20: 1, 30: 2}
    assert latest["ranks_that_wrote"] == 2


def test_common_state_is_what_megatron_lm_asks_for(folder: Path) -> None:
    state = dist_checkpointing.load_common_state_dict(str(folder / "untied" / "release"))
    assert state["args"].tensor_model_parallel_size == 1
    assert state["args"].pipeline_model_parallel_size == 1
    assert (state["args"].num_layers, state["args"].num_query_groups) == (4, 2)
    assert (state["iteration"], state["checkpoint_version"]) == (0, 3.0)
    assert state["content_metadata"] == {"singleton_local_shards": False}
