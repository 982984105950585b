"""Megatron-LM's own ``load_checkpoint`` reads an import: its ``release`` layout and ``common.pt``.

``megatron.training`` is in the wheels from 0.17 on: ``make test-matrix`` runs this with each.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core.num_microbatches_calculator import unset_num_microbatches_calculator

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.mcore.parallel import parallel_groups
from tests.checkpoint.llama import save_llama
from tests.checkpoint.test_torch_dist import TOKENS, build
from tests.ranks import run_on_ranks

pytest.importorskip(
    "megatron.training", reason="the wheel of Megatron-Core 0.16 has no Megatron-LM"
)

LAYOUTS = {
    "tensor": ParallelConfig(tensor_model_parallel_size=2),
    "pipeline": ParallelConfig(pipeline_model_parallel_size=2),
}
FLAGS = """
    --use-checkpoint-args --auto-detect-ckpt-format --transformer-impl local --micro-batch-size 1
    --seq-length 256 --train-iters 1 --lr 1e-4 --tokenizer-type NullTokenizer --vocab-size 130
    --no-gradient-accumulation-fusion --no-persist-layer-norm --no-masked-softmax-fusion
    --no-rope-fusion
"""
SHAPE = {
    "num_layers": 4,
    "hidden_size": 72,
    "ffn_hidden_size": 100,
    "num_attention_heads": 6,
    "num_query_groups": 2,
    "kv_channels": 16,
    "normalization": "RMSNorm",
    "swiglu": True,
    "untie_embeddings_and_output_weights": True,
    "rotary_base": 10000.0,
}


def on_two_ranks(checkpoint: Path) -> dict[str, tuple[torch.Tensor, int, dict[str, Any]]]:
    return {name: load_and_compute(checkpoint, layout) for name, layout in LAYOUTS.items()}


def load_and_compute(
    checkpoint: Path, parallel: ParallelConfig
) -> tuple[torch.Tensor, int, dict[str, Any]]:
    """Logits, the iteration that Megatron-LM says it loaded, and the shape that it took over."""
    from megatron.training import arguments, checkpointing, global_vars

    sizes = [
        *("--tensor-model-parallel-size", str(parallel.tensor_model_parallel_size)),
        *("--pipeline-model-parallel-size", str(parallel.pipeline_model_parallel_size)),
    ]
    sys.argv = ["pretrain_gpt.py", "--load", str(checkpoint), *FLAGS.split(), *sizes]
    with parallel_groups(parallel, seed=1), torch.no_grad():
        args = arguments.parse_args()
        checkpointing.load_args_from_checkpoint(args)
        # asked under tensor parallelism for an environment variable of CUDA; there is no device
        arguments.get_device_arch_version = lambda: 10
        arguments.validate_args(args)
        global_vars.set_args(args)
        global_vars.init_num_microbatches_calculator(args.rank, None, args.global_batch_size, 1, 1)
        model = build(checkpoint, parallel, 130).eval()
        iteration, _ = checkpointing.load_checkpoint([model], None, None)
        unset_num_microbatches_calculator()
        return forward(model), iteration, {name: getattr(args, name) for name in SHAPE}


def forward(model: Any) -> torch.Tensor:
    """Logits; of the first of two stages, the hidden states that it hands on."""
    positions = torch.arange(TOKENS.shape[1]).reshape(1, -1)
    if not model.pre_process:
        hidden = torch.empty(TOKENS.shape[1], 1, model.config.hidden_size)
        dist.recv(hidden, src=0)
        model.set_input_tensor(hidden)
    output: torch.Tensor = model(TOKENS, positions, None)
    if not model.post_process:
        dist.send(output, dst=1)
    return output


def test_megatron_lm_loads_an_import_as_a_release(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf")
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "megatron"))
    with torch.no_grad():
        expected = source(TOKENS).logits
    last_rank = run_on_ranks(2, on_two_ranks, tmp_path / "megatron")[1]
    assert set(last_rank) == set(LAYOUTS)
    for found, iteration, shape in last_rank.values():
        # float32: sums of 96 products in another order
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert iteration == 0
        assert shape == SHAPE
