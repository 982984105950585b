"""Peak memory of the loss: Megatron-Core's over full logits, and ours in tiles.

    python tools/benchmark_loss.py

Bytes of all live tensors are counted, operation by operation. Full logits of 65,536 tokens would
fill 31 GiB, so the plain path runs on tensors without data, which are counted alike; ``--check``
runs it on both kinds at a length that fits, and the two counts must agree.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from memory_measurement.live_bytes import LiveBytes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_ultralong.config.run import MemoryConfig
from megatron_ultralong.mcore.tiled_loss import _TiledCrossEntropy, _Tiling
from megatron_ultralong.mcore.tiles import SequenceTiles


def peak_gib(length: int, arguments: argparse.Namespace, *, tiled: bool, fake: bool) -> float:
    """Peak of live bytes of forward and backward; inputs and their gradients count too."""
    with FakeTensorMode() if fake else contextlib.nullcontext(), LiveBytes() as live:
        hidden = torch.randn(length, 1, arguments.hidden_size, requires_grad=True)
        weight = torch.randn(arguments.vocab_size, arguments.hidden_size, requires_grad=True)
        labels = torch.randint(arguments.vocab_size, (length, 1))
        if tiled:
            group: Any = parallel_state.get_tensor_model_parallel_group()
            tiling = _Tiling(SequenceTiles(1, arguments.tile_size), group)
            losses = _TiledCrossEntropy.apply(hidden, weight, labels, tiling)
        else:
            losses = vocab_parallel_cross_entropy((hidden @ weight.t()).float(), labels)
        losses.sum().backward()
    return live.peak_bytes / 2**30


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--vocab-size", type=int, default=128_256)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--tile-size", type=int, default=MemoryConfig.loss_tile_size)
    parser.add_argument("--check", type=int, default=1024, help="tokens of the run on both kinds")
    arguments = parser.parse_args()

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    real, without_data = (
        peak_gib(arguments.check, arguments, tiled=False, fake=fake) for fake in (False, True)
    )
    print(f"plain, {arguments.check} tokens: {real:.3f} GiB, without data {without_data:.3f} GiB")
    if abs(real - without_data) > 0.01 * real:
        sys.exit("error: tensors without data are counted differently")
    plain = peak_gib(arguments.tokens, arguments, tiled=False, fake=True)
    start = time.perf_counter()
    tiled = peak_gib(arguments.tokens, arguments, tiled=True, fake=False)
    seconds = time.perf_counter() - start
    print(
        f"{arguments.tokens} tokens, vocabulary {arguments.vocab_size}, float32, forward and "
        f"backward:\n  plain {plain:.2f} GiB (without data)\n  tiles of {arguments.tile_size}: "
        f"{tiled:.2f} GiB, 1/{plain / tiled:.0f} of it ({seconds:.0f} s)"
    )


if __name__ == "__main__":
    main()
