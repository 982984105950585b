"""What one rank of a big job runs, on a single device: its step time and its peak memory.

    python tools/benchmark_rank.py --recipe llama3.1-8b-4m --tensor-model-parallel-size 8 \
        --context-parallel-size 16 --world-size 256

The program's own model, optimizer and step run with the shards, the local tokens and all
collectives of rank 0; what other ranks would send are local copies. Only the time on the wires is
missing: it is added from the bytes that were counted and the bandwidths given, as if nothing of it
were hidden but the ring's, which travels beside the block_attention.

Under torchrun the ranks are real, and so is what travels: the same step with nothing emulated.

    torchrun --nproc-per-node 2 tools/benchmark_rank.py --recipe llama3.1-8b-1m --num-layers 4 \
        --tensor-model-parallel-size 1 --context-parallel-size 2

``--beside-transformer-engine p2p`` prints the step beside that of Megatron-Core with the context
parallelism of Transformer Engine, the same model on the same ranks, in turns.

``--beside-emulation`` prints the real step of every rank beside the emulated one of the same rank
on the same device, in turns, with clock and power of each: cards differ, and real ranks wait for
the slowest. Both are held: it takes twice the memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import sys
from pathlib import Path

import megatron.core
import torch
from rank_benchmark import lone_group
from rank_benchmark.emulation import print_beside_emulation
from rank_benchmark.job import Measurement, RankJob
from rank_benchmark.kernels import print_kernels
from rank_benchmark.ways import EXCHANGES, print_turns

from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from megatron_ultralong.config.run import LayerConfig, MemoryConfig
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.mcore.compat import check_layers
from megatron_ultralong.mcore.cpu import device as mcore_device
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.model.flops import peak_tflops, training_flops
from megatron_ultralong.model.shape import MODELS, ModelConfig
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranks import is_main_rank, world_size
from megatron_ultralong.sequence.documents import causal_area


def main() -> None:
    """Measure and print."""
    arguments = _parser().parse_args()
    is_real = "RANK" in os.environ
    if arguments.beside_emulation and not is_real:
        raise InputError(
            "--beside-emulation compares real ranks: start it with torchrun --nproc-per-node 2"
        )
    if is_real:
        arguments.world_size = world_size()
    recipe = PRETRAIN_RECIPES[arguments.recipe]()
    parallel = dataclasses.replace(
        recipe.parallel,
        tensor_model_parallel_size=arguments.tensor_model_parallel_size,
        context_parallel_size=arguments.context_parallel_size,
        sequence_parallel=arguments.tensor_model_parallel_size > 1,
    )
    replicas = parallel.data_parallel_size(arguments.world_size)
    config = dataclasses.replace(
        recipe,
        parallel=parallel,
        # One row for each replica is what a global batch comes to; more rows repeat the same work.
        global_batch_size=replicas,
        data=dataclasses.replace(
            recipe.data, seq_length=arguments.seq_length or recipe.data.seq_length
        ),
        memory=MemoryConfig(
            recompute_granularity=arguments.recompute_granularity,
            sequence_tile_size=arguments.sequence_tile_size,
            loss_tile_size=arguments.loss_tile_size,
            offload_activations=arguments.offload_activations,
        ),
        layers=LayerConfig(
            transformer_impl=arguments.transformer_impl,
            attention=arguments.attention,
            fp8_format=arguments.fp8_format,
            fp8_recipe=arguments.fp8_recipe,
            apply_rope_fusion=arguments.apply_rope_fusion,
            elementwise_kernel=arguments.elementwise_kernel,
        ),
        precision="bf16",
    )
    config.check_layers()
    check_layers(config.layers, deterministic=False, is_saved=False)
    parallel.check_seq_length(config.data.seq_length)
    model = load_metadata(arguments.load).model if arguments.load else MODELS["llama3.1-8b"]
    model = dataclasses.replace(model, num_layers=arguments.num_layers or model.num_layers)
    parallel.check_model(model)
    if not is_real:
        lone_group.start(0, arguments.world_size)
    with parallel_groups(parallel, seed=1) as groups:
        if arguments.beside_transformer_engine:
            _say_command()
            print_turns(arguments, config, model, groups)
            return
        if arguments.beside_emulation:
            _say_command()
            print_beside_emulation(arguments, config, model, groups)
            return
        job = RankJob(config, model, groups)
        ballast = _other_layers(job, arguments.held_layers)
        for length in arguments.warm_up:  # compiles kernels
            job.iteration(length or config.data.seq_length)
        measured = job.iteration(config.data.seq_length)
        if is_main_rank():
            _report(arguments, config, model, measured, sum(x.nbytes for x in ballast), is_real)
        if arguments.profile:  # ranks that are real need each other
            print_kernels("the step again", lambda: job.iteration(config.data.seq_length))


def _other_layers(job: RankJob, num_layers: int) -> list[torch.Tensor]:
    """Memory that further layers would hold: weights, float32 gradients, optimizer's states."""
    layers = job.state.chunks[0].module.decoder.layers
    elements = sum(x.numel() for x in layers[0].parameters()) * num_layers
    shards = job.groups.dp_cp.size()
    sizes = (2 * elements, 4 * elements, 12 * elements // shards)
    device = next(layers[0].parameters()).device
    return [torch.zeros(size, dtype=torch.uint8, device=device) for size in sizes if size]


def _report(
    arguments: argparse.Namespace,
    config: PretrainConfig,
    model: ModelConfig,
    measured: Measurement,
    ballast: int,
    is_real: bool,
) -> None:
    parallel, length = config.parallel, config.data.seq_length
    area = causal_area([0, length])
    flops = training_flops(model, length, area)
    ranks = parallel.tensor_model_parallel_size * parallel.context_parallel_size
    place = mcore_device()
    device = torch.cuda.get_device_name() if place.type == "cuda" else platform.machine()
    peak = arguments.peak_tflops or peak_tflops(device) or 989.4
    gigabytes = {
        f"{operation} over {size}": count / 1e9
        for (operation, size), count in sorted(measured.sent_bytes.items())
        if size > 1
    }
    # Tensor parallelism stays inside a node; data and context parallelism leave it.
    tp = parallel.tensor_model_parallel_size
    wire = sum(
        count
        / (arguments.nvlink_gbps if size == tp and size <= 8 else arguments.network_gbps)
        / 1e9
        for (operation, size), count in measured.sent_bytes.items()
        if size > 1 and operation != "send"
    )
    hidden = sum(
        count / arguments.network_gbps / 1e9
        for (operation, _), count in measured.sent_bytes.items()
        if operation == "send"
    )
    job = measured.seconds + wire

    def mfu(seconds: float) -> float:
        return flops.total / ranks / seconds / 1e12 / peak

    figures = {
        "device": device,
        "torch": torch.__version__,
        "megatron-core": megatron.core.__version__,
        "attention kernel": block_attention.resolve(torch.bfloat16, model.kv_channels, place).name,
        "tokens of a row": length,
        "layers": model.num_layers,
        "layout": f"TP {tp}, CP {parallel.context_parallel_size}, {arguments.world_size} "
        + ("real ranks" if is_real else "ranks, of which one runs"),
        "modules": dataclasses.asdict(config.layers),
        "memory": dataclasses.asdict(config.memory),
        "measured: step, s": round(measured.seconds, 3),
        "measured: by phase, s": {k: round(v, 3) for k, v in measured.phases.items()},
        "measured: loss": round(measured.loss, 4),
        "measured: peak allocated, GiB": round(measured.peak_allocated_gib, 2),
        "measured: peak reserved, GiB": round(measured.peak_reserved_gib, 2),
        "measured: held before the step, GiB": round(measured.start_gib, 2),
        "of that, held for other layers, GiB": round(ballast / 2**30, 2),
        "measured: pinned on the host, GiB": round(measured.host_gib, 2),
        "computed: model TFLOP of the rank": round(flops.total / ranks / 1e12, 1),
        "computed: share of attention": round(flops.attention / flops.total, 4),
        "MFU of the measured step": round(mfu(measured.seconds), 4),
        "peak TFLOP/s": peak,
    }
    if not is_real:  # what real ranks send is in their time
        figures |= {
            "measured: GB that leave the rank": {k: round(v, 2) for k, v in gigabytes.items()},
            "computed: ring on the wire, hidden behind block_attention, s": round(hidden, 3),
            "computed: other exposed communication, s": round(wire, 3),
            "MFU with communication": round(mfu(job), 4),
            "job: step, s": round(job, 3),
        }
    _say_command()
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:{width}}  {value}", flush=True)
    if arguments.json:
        with arguments.json.open("a") as file:
            file.write(json.dumps(figures) + "\n")


def _say_command() -> None:
    if is_main_rank():
        print(f"`python {' '.join(sys.argv)}`, {datetime.date.today().isoformat()}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--recipe", choices=sorted(PRETRAIN_RECIPES), default="llama3.1-8b-1m")
    add("--seq-length", type=int, default=0, help="tokens of a row; 0: the recipe's")
    add("--tensor-model-parallel-size", type=int, default=8)
    add("--context-parallel-size", type=int, default=4)
    add("--world-size", type=int, default=256, help="ranks of the job; under torchrun its own")
    add("--load", type=Path, default=None, help="checkpoint whose shape to take, not Llama 3.1 8B")
    add("--num-layers", type=int, default=0, help="layers that run; 0: all")
    add("--held-layers", type=int, default=0, help="layers whose memory is held, not run")
    add("--recompute-granularity", default="keep_attention", choices=["keep_attention", "full"])
    add("--transformer-impl", default="local", choices=["local", "transformer_engine"])
    add("--attention", default="ring", choices=["ring", "te"])
    add("--fp8-format", default="none", choices=["none", "e4m3", "hybrid"])
    add("--fp8-recipe", default="tensorwise", choices=["tensorwise", "blockwise", "mxfp8"])
    add("--apply-rope-fusion", action="store_true")
    add("--elementwise-kernel", default="auto", choices=["auto", "compiled", "torch"])
    add("--profile", action="store_true", help="print the longest kernels of one more step")
    add("--sequence-tile-size", type=int, default=MemoryConfig.sequence_tile_size)
    add("--loss-tile-size", type=int, default=MemoryConfig.loss_tile_size)
    add("--offload-activations", action="store_true")
    add("--warm-up", type=int, nargs="*", default=[0], help="lengths of rows before, which compile "
        "kernels; 0: the row's own, since tiles of other lengths compile others")  # fmt: skip
    add("--nvlink-gbps", type=float, default=370.0, help="GB/s of a collective inside a node")
    add("--network-gbps", type=float, default=45.0, help="GB/s a rank between nodes")
    add("--peak-tflops", type=float, default=0.0, help="0: the device's dense bf16 peak")
    add("--beside-transformer-engine", nargs="+", choices=EXCHANGES, default=[], help="print a "
        "table of the step and of these of its --cp-comm-type, in turns; all are held")  # fmt: skip
    add(
        "--beside-emulation",
        action="store_true",
        help="print the real step of every rank beside its emulated one, in turns; both are held",
    )
    add("--turns", type=int, default=3, help="steps of each, whose median is printed")
    add("--json", type=Path, default=None, help="append the figures to this file")
    return parser


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
