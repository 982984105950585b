"""How fast host memory can be pinned: by torch, by torch's own option for it, and as a run does.

::

    python tools/benchmark_pinning.py --gigabytes 16

Each way has a process of its own, since torch keeps what it has pinned, and they take turns; needs
a CUDA GPU. ``--ranks N`` starts N at once, as a node's ranks do. Ways:

* torch: ``torch.empty(..., pin_memory=True)``, which calls ``cudaHostAlloc``
* torch, registering: the same under ``pinned_use_cuda_host_register:True`` with eight threads
* a run's: ``PinnedMemory.reserve``
* a run's, untold: the same without telling the GPU, to see what finding the pages takes
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch

from megatron_ultralong.mcore.host_memory import PinnedMemory

BUFFER = 2**29
"""Bytes of a buffer: hidden states of 65,536 tokens."""
OPTION = "pinned_use_cuda_host_register:True,pinned_num_register_threads:8"
WAYS = {
    "torch": {},
    "torch, registering": {"PYTORCH_CUDA_ALLOC_CONF": OPTION, "PYTORCH_ALLOC_CONF": OPTION},
    "a run's": {},
    "a run's, untold": {},
}


def measure(way: str, gigabytes: float) -> dict[str, float]:
    """Seconds to pin, and GB/s of a copy into and out of it; run in a process of its own."""
    torch.cuda.init()
    on_device = torch.randint(0, 255, (BUFFER,), dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    count = max(1, round(gigabytes * 1e9 / BUFFER))
    memory = PinnedMemory(pins=not way.endswith("untold"))
    begin = time.perf_counter()
    if way.startswith("torch"):
        buffers = [torch.empty(BUFFER, dtype=torch.uint8, pin_memory=True) for _ in range(count)]
    else:
        memory.reserve([BUFFER] * count)
        buffers = [memory.take(torch.Size((BUFFER,)), torch.uint8) for _ in range(count)]
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    for buffer in buffers:
        buffer.copy_(on_device, non_blocking=True)
    torch.cuda.synchronize()
    out = time.perf_counter() - begin
    back = torch.empty_like(on_device)
    begin = time.perf_counter()
    for buffer in buffers:
        back.copy_(buffer, non_blocking=True)
    torch.cuda.synchronize()
    into = time.perf_counter() - begin
    assert torch.equal(back, on_device), "a copy through the host has other bytes"
    size = count * BUFFER / 1e9
    return {
        "gigabytes": size,
        "seconds": seconds,
        "out": size / out,
        "into": size / into,
        "pinned": float(all(buffer.is_pinned() for buffer in buffers)),
    }


def run(way: str, gigabytes: float, ranks: int) -> dict[str, float]:
    """Of ``ranks`` processes at once: all their bytes over the slowest one's time."""
    command = [sys.executable, __file__, "--gigabytes", f"{gigabytes / ranks}", "--way", way]
    env = {**os.environ, **WAYS[way], "LOCAL_WORLD_SIZE": str(ranks)}
    children = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(ranks)
    ]
    results = []
    for child in children:
        text, _ = child.communicate()
        if child.returncode:
            raise SystemExit(f"{way}: a process ended with status {child.returncode}")
        results.append(json.loads(text.splitlines()[-1]))
    seconds = max(result["seconds"] for result in results)
    total = sum(result["gigabytes"] for result in results)
    return {
        "rate": total / seconds,
        "seconds": seconds,
        **{name: sum(result[name] for result in results) for name in ("out", "into", "pinned")},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=16, help="to pin, over all ranks")
    parser.add_argument("--ranks", type=int, default=1, help="processes at once")
    parser.add_argument("--rounds", type=int, default=2, help="times that each way is measured")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmark_pinning.py needs a CUDA GPU, and torch finds none")
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.gigabytes)))
        return
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {os.cpu_count()} cores, "
        f"{arguments.gigabytes:g} GB by {arguments.ranks} process(es)"
    )
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(arguments.rounds):
        for way, results in found.items():
            results.append(run(way, arguments.gigabytes, arguments.ranks))
            it = results[-1]
            print(
                f"round {number + 1}, {way}: {it['seconds']:.2f} s, {it['rate']:.2f} GB/s "
                f"({it['rate'] * 1e9 / 2**30:.2f} GiB/s); copies {it['out']:.1f} GB/s out, "
                f"{it['into']:.1f} in; is_pinned in {it['pinned']:.0f}",
                flush=True,
            )
    for way, results in found.items():
        ratio = statistics.median(
            one["rate"] / other["rate"] for one, other in zip(results, found["torch"], strict=True)
        )
        print(f"{way}: {ratio:.2f} times torch's rate (median of {arguments.rounds})")


if __name__ == "__main__":
    main()
