"""How fast a layout reads a prompt and writes behind it, and what its cache takes.

    python tools/benchmark_decoding.py --prompt-length 131072
    torchrun --nproc-per-node 2 tools/benchmark_decoding.py --context-parallel-size 2

The program's own model and decoder, in the shape of Llama 3.1 8B, with random weights and tokens:
the work does not depend on them. Behind the same prompts tokens are written kernel by kernel
(eager) and as one CUDA graph each, beside the time that the device takes to read weights, keys and
values at the rate of a copy.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import megatron.core
import numpy as np
import torch
from rank_benchmark.kernels import kernel_times

from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.config.generate import DecodingConfig, SamplingConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.generation.continuation import Continuation, choose
from megatron_ultralong.mcore.cpu import device
from megatron_ultralong.mcore.decoding import Decoder
from megatron_ultralong.mcore.model import build_model, transformer_config
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.mcore.recomputed_layer import Recomputation
from megatron_ultralong.mcore.static_step import WARM_UP, StepForm
from megatron_ultralong.model.flops import forward_flops
from megatron_ultralong.model.shape import MODELS, ModelConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranks import is_main_rank, world_size
from megatron_ultralong.sequence.documents import causal_area

TILE_SIZE = 4096
NUM_PROFILED = 4  # steps
LONGEST = 10  # kernels
COPIED_BYTES = 2**30


class Steps(NamedTuple):
    """What writing tokens in one form took."""

    ms: float
    """Median of a step, from its logits to the next ones."""
    first_ms: list[float]
    """Those of the steps before, in which libraries prepare themselves and a graph is captured."""
    kernel_ms: float
    """Of a step, the time in kernels and copies; 0: not known."""
    num_kernels: float
    """Of a step."""
    longest: list[tuple[str, float]]
    """Kernels that take the most of a step, with their milliseconds."""


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


def step(decoder: Decoder, num_rows: int, logits: torch.Tensor) -> torch.Tensor:
    """What the program does for a token of each row."""
    tokens = decoder.agree(choose(logits, SamplingConfig(), range(num_rows), 0)).tolist()
    return decoder.step(range(num_rows), tokens)


def measure(decoder: Decoder, form: StepForm, num_rows: int, num_steps: int) -> Steps:
    """Write tokens in that form behind what was read."""
    decoder.set_steps(form)
    logits = torch.zeros((num_rows, 1), device=device())
    seconds = []
    for _ in range(num_steps):
        start = time.perf_counter()
        logits = step(decoder, num_rows, logits)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    first = WARM_UP + 1
    ms = [1000 * its for its in seconds]
    kernels = []
    if torch.cuda.is_available():
        kernels = kernel_times(
            lambda: [step(decoder, num_rows, logits) for _ in range(NUM_PROFILED)]
        )
    return Steps(
        statistics.median(ms[first:]),
        ms[:first],
        sum(ms for ms, *_ in kernels) / NUM_PROFILED,
        sum(count for _, count, _ in kernels) / NUM_PROFILED,
        [(name, ms / NUM_PROFILED) for ms, _, name in kernels[:LONGEST]],
    )


def copy_rate() -> float:
    """Bytes a second that a copy on the device reads and writes."""
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return 2 * COPIED_BYTES / min(times)


def step_bytes(decoder: Decoder, model: ModelConfig) -> int:
    """What a step reads on this rank: weights, except for the table of vectors, keys and values."""
    with decoder.whole_rows() as gpt:
        weights = sum(
            parameter.nbytes
            for name, parameter in gpt.named_parameters()
            if "word_embeddings" not in name or not model.untie_embeddings_and_output_weights
        )
    return weights + decoder.cache_bytes


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
        continuation, written = Continuation(decoder, config=config), arguments.max_new_tokens
        steps = max(8, written)
        continuation.generate(  # with room for the steps that follow
            prompts,
            written + 2 * (steps + NUM_PROFILED) + 1,
            has_ended=lambda ids: len(ids) >= written,
        )
        speed, cache, said = continuation.speed, decoder.cache_bytes, decoder.step_form
        is_gpu = device().type == "cuda"
        peak = torch.cuda.max_memory_allocated() / 2**30 if is_gpu else 0
        forms: list[StepForm] = ["eager", "graph" if said.endswith("graph") else "static"]
        times = {form: measure(decoder, form, batch, steps) for form in forms}
        least_ms = 1000 * step_bytes(decoder, model) / copy_rate() if is_gpu else 0
    if not is_main_rank():
        return
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
        "steps": said,
        "measured: prefill, s": round(speed.prefill_seconds, 2),
        "measured: a step, capture and all, ms": round(
            1000 * speed.decode_seconds / max(1, arguments.max_new_tokens - 1), 2
        ),
        "prefill, TFLOP/s a rank": round(per_rank, 1),
        "keys and values of a rank, GiB": round(cache / 2**30, 2),
        "peak allocated, GiB": round(peak, 2),
    }
    for form, its in times.items():
        figures[f"{form}: a step, median of {steps - WARM_UP - 1}, ms"] = round(its.ms, 2)
        figures[f"{form}: its first steps, ms"] = [round(ms, 1) for ms in its.first_ms]
        figures[f"{form}: kernels of a step"] = f"{its.num_kernels:,.0f}, {its.kernel_ms:.2f} ms"
        for number, (name, ms) in enumerate(its.longest):
            figures[f"{form}: kernel {number}"] = f"{ms:.3f} ms  {name[:90]}"
    eager, other = (its.ms for its in times.values())
    figures["ratio of the two"] = round(eager / other, 2)
    if is_gpu:
        figures["least: weights, keys, values at a copy's rate, ms"] = round(least_ms, 2)
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
