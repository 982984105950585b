"""How fast a layout reads a prompt and writes behind it, and what its cache takes.

    python tools/benchmark_decoding.py --prompt-length 131072
    torchrun --nproc-per-node 2 tools/benchmark_decoding.py --context-parallel-size 2

The program's own model and decoder, in the shape of Llama 3.1 8B, with random weights and tokens:
the work does not depend on them.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import platform
import sys
from pathlib import Path

import megatron.core
import numpy as np
import torch

from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.config.generate import DecodingConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.generation.continuation import Continuation
from megatron_ultralong.mcore.cpu import device
from megatron_ultralong.mcore.decoding import Decoder
from megatron_ultralong.mcore.model import build_model, transformer_config
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.mcore.recomputed_layer import Recomputation
from megatron_ultralong.model.flops import forward_flops
from megatron_ultralong.model.shape import MODELS, ModelConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranks import is_main_rank, world_size
from megatron_ultralong.sequence.documents import causal_area

TILE_SIZE = 4096


def random_decoder(
    model: ModelConfig, parallel: ParallelConfig, groups: object, seq_length: int
) -> Decoder:
    """The model in bf16 on this rank, its weights drawn."""
    gpt = build_model(
        model,
        transformer_config(model, parallel, params_dtype=torch.bfloat16),
        groups,
        seq_length=seq_length,
        rope_scaling=None,
        recomputation=Recomputation(tile_size=TILE_SIZE),
        loss_tile_size=TILE_SIZE,
    ).to(torch.bfloat16)
    generator = torch.Generator(device()).manual_seed(0)
    for parameter in gpt.parameters():
        if parameter.ndim == 1:  # of a norm
            torch.nn.init.ones_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return Decoder(gpt, groups)


def main() -> None:
    """Measure and print."""
    arguments = _parser().parse_args()
    parallel = ParallelConfig(
        tensor_model_parallel_size=arguments.tensor_model_parallel_size,
        context_parallel_size=arguments.context_parallel_size,
    )
    if parallel.model_parallel_size != world_size():
        raise InputError(
            f"tensor x context parallel size ({parallel.model_parallel_size}) must be the number "
            f"of ranks ({world_size()}): start as many by torchrun --nproc-per-node"
        )
    model = load_metadata(arguments.load).model if arguments.load else MODELS["llama3.1-8b"]
    parallel.check_model(model)
    model = dataclasses.replace(model, num_layers=arguments.num_layers or model.num_layers)
    length, batch = arguments.prompt_length, arguments.batch_size
    generator = np.random.default_rng(0)
    prompts = [generator.integers(model.vocab_size, size=length) for _ in range(batch)]
    config = DecodingConfig(arguments.prefill_chunk_size, batch)
    with parallel_groups(parallel, seed=1) as groups, torch.no_grad():
        decoder = random_decoder(model, parallel, groups, length + arguments.max_new_tokens)
        warm = [prompt[: min(length, 2 * arguments.prefill_chunk_size)] for prompt in prompts]
        Continuation(decoder, config=config).generate(warm, 4)  # compiles kernels, meets ranks
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        continuation = Continuation(decoder, config=config)
        continuation.generate(prompts, arguments.max_new_tokens)
        speed, cache = continuation.speed, decoder.cache_bytes
    if not is_main_rank():
        return
    is_gpu = device().type == "cuda"
    flops = batch * forward_flops(model, length, causal_area([0, length])).total
    per_rank = flops / speed.prefill_seconds / world_size() / 1e12
    figures = {
        "device": torch.cuda.get_device_name() if is_gpu else platform.machine(),
        "torch": torch.__version__,
        "megatron-core": megatron.core.__version__,
        "attention kernel": block_attention.resolve(
            torch.bfloat16, model.kv_channels, device()
        ).name,
        "layout": f"TP {parallel.tensor_model_parallel_size}, "
        f"CP {parallel.context_parallel_size}, {model.num_layers} layers",
        "prompts": f"{batch} of {length:,} tokens in chunks of {arguments.prefill_chunk_size:,}",
        "measured": str(speed),
        "measured: prefill, s": round(speed.prefill_seconds, 2),
        "measured: a decoding step, ms": round(
            1000 * speed.decode_seconds / max(1, arguments.max_new_tokens - 1), 2
        ),
        "prefill, TFLOP/s a rank": round(per_rank, 1),
        "keys and values of a rank, GiB": round(cache / 2**30, 2),
        "peak allocated, GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2) if is_gpu else 0,
    }
    print(f"`python {' '.join(sys.argv)}`, {datetime.date.today().isoformat()}\n")
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:{width}}  {value}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--prompt-length", type=int, default=131_072)
    add("--batch-size", type=int, default=1, help="prompts that are continued together")
    add("--max-new-tokens", type=int, default=64)
    add("--prefill-chunk-size", type=int, default=DecodingConfig.prefill_chunk_size)
    add("--tensor-model-parallel-size", type=int, default=1)
    add("--context-parallel-size", type=int, default=1)
    add("--load", type=Path, default=None, help="checkpoint whose shape to take, not Llama 3.1 8B")
    add("--num-layers", type=int, default=0, help="0: all")
    return parser


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
