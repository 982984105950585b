"""The dense part of a step, everything in the layers but attention, beside a large matrix product.

    python tools/benchmark_dense.py
    python tools/benchmark_dense.py --device cpu --model small --tokens 256 --sequence-tile-size 96

One process, one GPU: layers of Llama 3.1 8B's shape in the program's own model, optimizer and
step, one row. Three ways in one run: elementwise operations one by one with every product of the
recomputation (``before``), the same without the products whose results nobody reads (``torch``),
and with compiled kernels (``compiled``). Attention is left out while layers are timed, by events
on the stream around each layer's passes; then whole steps run with it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import megatron.core
import torch
from rank_benchmark import lone_group
from rank_benchmark.job import Measurement, RankJob
from rank_benchmark.kernels import print_kernels
from torch import Tensor

from megatron_ultralong.attention import KeptOutput
from megatron_ultralong.attention.kernels import block_attention
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from megatron_ultralong.config.run import LayerConfig, MemoryConfig
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.mcore import cpu, elementwise, projection
from megatron_ultralong.mcore.core_attention import RingCoreAttention
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.mcore.recomputed_layer import RecomputedLayer, _LayerWork
from megatron_ultralong.model.flops import peak_tflops, training_flops
from megatron_ultralong.model.shape import MODELS, ModelConfig
from megatron_ultralong.sequence.documents import causal_area

SMALL = ModelConfig(2, 64, 96, 4, 2, 16, 320, 1e-5, 10000.0, 512, True)
WAYS = {"before": "torch", "torch": "torch", "compiled": "compiled"}


class _Free(torch.autograd.Function):
    """Attention that costs nothing: the queries, whose gradients keys and values do not share."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.shapes = q.shape, k.shape
        return q.detach().flatten(2)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, ...]:
        q, k = ctx.shapes
        zeros = dout.new_zeros(1).expand(k) if not dout.is_cuda else _zeros(dout, k)
        return dout.reshape(q), zeros, zeros


_ZEROS: dict[torch.Size, Tensor] = {}


def _zeros(like: Tensor, shape: torch.Size) -> Tensor:
    if shape not in _ZEROS:
        _ZEROS[shape] = like.new_zeros(shape)
    return _ZEROS[shape]


def _free_attention(
    self: RingCoreAttention, q: Tensor, k: Tensor, v: Tensor, *, keep: KeptOutput, **_: Any
) -> Tensor:
    if keep.out_lse is None:
        lse = q.new_zeros((q.shape[1], q.shape[2], q.shape[0]), dtype=torch.float32)
        keep.out_lse = q.detach(), lse
    return _Free.apply(q, k, v)


class LayerClock:
    """Time of the layers' own passes."""

    def __init__(self) -> None:
        self._marks: list[tuple[str, Any, Any]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While this is entered, every pass of a layer is timed."""
        with contextlib.ExitStack() as stack:
            for name in ("forward", "backward"):
                timed = self._timed(name, getattr(_LayerWork, name))
                stack.enter_context(mock.patch.object(_LayerWork, name, timed))
            yield

    def _timed(self, name: str, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = _mark()
            result = method(*args, **kwargs)
            self._marks.append((name, start, _mark()))
            return result

        return call

    def take(self) -> dict[str, float]:
        """Seconds of forward and of backward passes since the last call."""
        _synchronize()
        found = {"forward": 0.0, "backward": 0.0}
        for name, start, stop in self._marks:
            found[name] += _seconds(start, stop)
        self._marks.clear()
        return found


def _mark() -> Any:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(start: Any, stop: Any) -> float:
    return start.elapsed_time(stop) / 1000 if torch.cuda.is_available() else stop - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def product_rate(tokens: int, inputs: int, outputs: int, seconds: float = 0.5) -> float:
    """TFLOP/s of one product in bfloat16, random numbers, over about so many seconds."""
    device = cpu.device()
    a, b = (
        torch.randn(shape, device=device, dtype=torch.bfloat16)
        for shape in ((tokens, inputs), (inputs, outputs))
    )
    flop = 2.0 * tokens * inputs * outputs
    for number in (3, max(3, int(seconds * 7e14 / flop)) if a.is_cuda else 3):
        start = _mark()
        for _ in range(number):
            a @ b
        stop = _mark()
        _synchronize()
    return number * flop / _seconds(start, stop) / 1e12


def layer_flop(model: ModelConfig, tokens: int, way: str) -> dict[tuple[int, int], float]:
    """FLOP of a layer's products with recomputation, by shape of the weight.

    Forward 1, backward 2, made again 1; queries, keys and values once more, and the MLP's last
    product once less, where nobody reads them.
    """
    hidden, ffn, width = model.hidden_size, model.ffn_hidden_size, model.kv_channels
    queries = model.num_attention_heads * width
    qkv = queries + 2 * model.num_query_groups * width
    is_all = way == "before"
    passes = {
        (hidden, qkv): 5 if is_all else 4,
        (queries, hidden): 4,
        (hidden, 2 * ffn): 4,
        (ffn, hidden): 4 if is_all else 3,
    }
    return {shape: number * 2.0 * tokens * shape[0] * shape[1] for shape, number in passes.items()}


@dataclasses.dataclass
class Way:
    """What was measured of one way, in seconds a layer or a step."""

    forward: float
    backward: float
    flop: float
    """Of a layer, with recomputation."""
    step: float
    mfu: float
    peak_gib: float
    first: float
    """Seconds of the first step, which compiles."""
    losses: list[float]

    @property
    def tflops(self) -> float:
        """Of a layer's products."""
        return self.flop / (self.forward + self.backward) / 1e12


class Bench:
    """One job, whose layers are switched from way to way: weights and memory are the same."""

    def __init__(self, config: PretrainConfig, model: ModelConfig, groups: Any) -> None:
        self.job = RankJob(config, model, groups)
        self.tokens, self.model = config.data.seq_length, model
        self.clock = LayerClock()

    @contextlib.contextmanager
    def way(self, name: str) -> Iterator[None]:
        """While this is entered, layers work that way."""
        is_compiled = WAYS[name] == "compiled"
        for layer in self.job.state.chunks[0].module.decoder.layers:
            assert isinstance(layer, RecomputedLayer)
            assert layer.recomputation is not None
            layer.recomputation = dataclasses.replace(layer.recomputation, fused=is_compiled)
            layer.mlp.config.bias_activation_fusion = is_compiled
        if name != "before":
            yield
            return
        nothing = contextlib.nullcontext()
        with mock.patch.object(projection, "result_left_out", return_value=nothing):
            yield

    def dense(self, way: str) -> tuple[float, dict[str, float]]:
        """Seconds of a step without attention, and of its layers' passes."""
        free = mock.patch.object(RingCoreAttention, "forward", _free_attention)
        with self.way(way), free, self.clock.running():
            seconds = self.job.iteration(self.tokens).seconds
            return seconds, self.clock.take()

    def step(self, way: str) -> Measurement:
        """A whole step."""
        with self.way(way):
            return self.job.iteration(self.tokens)

    def measure(self, arguments: argparse.Namespace) -> dict[str, Way]:
        """Every way, in turns."""
        first = {way: self.dense(way)[0] for way in arguments.ways}
        passes: dict[str, list[dict[str, float]]] = {way: [] for way in arguments.ways}
        for _ in range(arguments.repeat):
            for way in arguments.ways:
                passes[way].append(self.dense(way)[1])
        steps: dict[str, list[Measurement]] = {way: [] for way in arguments.ways}
        self.step(arguments.ways[0])  # compiles attention's kernels
        for _ in range(arguments.repeat_steps):
            for way in arguments.ways:
                steps[way].append(self.step(way))
        flops = training_flops(self.model, self.tokens, causal_area([0, self.tokens]))
        found = {}
        for way in arguments.ways:
            seconds = statistics.median(step.seconds for step in steps[way])
            forward, backward = (
                statistics.median(each[name] for each in passes[way]) / self.model.num_layers
                for name in ("forward", "backward")
            )
            found[way] = Way(
                forward,
                backward,
                flop=sum(layer_flop(self.model, self.tokens, way).values()),
                step=seconds,
                mfu=flops.total / seconds / 1e12 / arguments.peak_tflops,
                peak_gib=max(step.peak_allocated_gib for step in steps[way]),
                first=first[way],
                losses=[step.loss for step in steps[way]],
            )
        return found


def main() -> None:
    """Measure and print."""
    arguments = _parser().parse_args()
    if arguments.device == "cpu":
        torch.cuda.is_available = lambda: False  # type: ignore[method-assign]
    model = SMALL if arguments.model == "small" else MODELS[arguments.model]
    model = dataclasses.replace(model, num_layers=arguments.num_layers)
    recipe = PRETRAIN_RECIPES["llama3.1-8b-1m"]()
    config = dataclasses.replace(
        recipe,
        parallel=ParallelConfig(),
        global_batch_size=1,
        data=dataclasses.replace(recipe.data, seq_length=arguments.tokens),
        memory=MemoryConfig(sequence_tile_size=arguments.sequence_tile_size),
        precision="bf16",
    )
    place = cpu.device()
    name = torch.cuda.get_device_name() if place.type == "cuda" else "CPU"
    arguments.peak_tflops = arguments.peak_tflops or peak_tflops(name) or 989.4
    print(f"`python {' '.join(sys.argv)}`, {datetime.date.today().isoformat()}\n")
    print(f"{name}, torch {torch.__version__}, Megatron-Core {megatron.core.__version__}, Python "
          f"{sys.version.split()[0]}")  # fmt: skip
    print(block_attention.choice(torch.bfloat16, model.kv_channels, place))
    start = time.perf_counter()
    choice = elementwise.choose("auto", torch.bfloat16, place)
    print(f"{choice} (found in {time.perf_counter() - start:.1f} s)")
    lone_group.start(0, 1)
    if not choice.is_compiled:
        arguments.ways = [way for way in arguments.ways if way != "compiled"]
    large = [product_rate(*([arguments.large] * 3))]
    config = dataclasses.replace(config, layers=LayerConfig(elementwise_kernel="torch"))
    with parallel_groups(config.parallel, seed=1) as groups:
        bench = Bench(config, model, groups)
        found = bench.measure(arguments)
        large.append(product_rate(*([arguments.large] * 3)))
        _report(arguments, model, found, max(large))
        for way in arguments.ways if arguments.profile else ():
            print_kernels(f"{way}: one step without attention", lambda way=way: bench.dense(way))


def _report(
    arguments: argparse.Namespace, model: ModelConfig, found: dict[str, Way], large: float
) -> None:
    print(f"\nlarge product ({arguments.large:,} cubed): {large:.0f} TFLOP/s")
    tile = min(arguments.sequence_tile_size or arguments.tokens, arguments.tokens)
    shapes = layer_flop(model, arguments.tokens, "compiled")
    rates = {shape: product_rate(tile, *shape) for shape in shapes}
    alone = sum(flop / rates[shape] for shape, flop in shapes.items())
    bound = sum(shapes.values()) / alone
    print(f"products of a layer alone, tiles of {tile:,} tokens: {bound:.0f} TFLOP/s, "
          f"{bound / large:.2f} of it; " + ", ".join(
              f"{a} x {b}: {rate:.0f}" for (a, b), rate in rates.items()))  # fmt: skip
    base = next(iter(found.values()))
    print(f"\n{model.num_layers} layers, a row of {arguments.tokens:,} tokens\n")
    print("| elementwise | layer without attention, ms (forward, backward) | over the first way "
          "| TFLOP/s with recomputation | over the large product | whole step, s | over the first "
          "way | MFU | peak GiB | first step, s |")  # fmt: skip
    print("| --- " * 10 + "|")
    for way, its in found.items():
        layer = its.forward + its.backward
        print(f"| {way} | {1e3 * layer:.1f} ({1e3 * its.forward:.1f}, {1e3 * its.backward:.1f}) | "
              f"{layer / (base.forward + base.backward):.3f} | {its.tflops:.0f} | "
              f"**{its.tflops / large:.2f}** | {its.step:.3f} | {its.step / base.step:.3f} | "
              f"{its.mfu:.1%} | {its.peak_gib:.2f} | {its.first:.1f} |")  # fmt: skip
    sys.stdout.flush()
    print("\nlosses of the whole steps: " + "; ".join(
        f"{way}: {', '.join(f'{loss:.5f}' for loss in its.losses)}" for way, its in found.items()
    ))  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="llama3.1-8b", choices=["small", *sorted(MODELS)])
    add("--num-layers", type=int, default=4)
    add("--tokens", type=int, default=131072, help="of the row")
    add("--sequence-tile-size", type=int, default=MemoryConfig.sequence_tile_size)
    add("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    add("--large", type=int, default=8192, help="rows and columns of the large product")
    add("--repeat", type=int, default=3, help="steps without attention")
    add("--repeat-steps", type=int, default=2, help="steps with attention")
    add("--profile", action="store_true", help="print the longest kernels of each way")
    add("--peak-tflops", type=float, default=0.0, help="0: the device's dense bf16 peak")
    add("--device", default="auto", choices=["auto", "cpu"])
    return parser


if __name__ == "__main__":
    main()
