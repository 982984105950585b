"""Benchmark of checkpoint conversion: rate beside `cp` and `sync`, and peak memory.

python tools/benchmark_conversion.py --work FOLDER [--layers 32] [--hidden 4096] [--meta-shards 8]

It makes a random bf16 model of Llama 3.1 8B's shape (16 GB; FOLDER needs 50 GB) and converts it.
Each step is a process of its own on files that are not in the page cache; its wall time, with the
start of Python and the wait for the disk, is set beside that of `cp -r` and `sync` of the source.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

# Nothing of torch is imported in the process that measures: Linux counts the memory of the parent
# into ru_maxrss of the child it starts.


def make_source(args: argparse.Namespace, folder: Path) -> None:
    """Write a Hugging Face folder of random weights, in shards of at most 5 GB."""
    import numpy as np
    import torch

    from megatron_ultralong.checkpoint.formats.hugging_face import SafetensorsWriter
    from megatron_ultralong.checkpoint.formats.hugging_face_config import model_config
    from megatron_ultralong.checkpoint.formats.tensor_file import TensorInfo
    from megatron_ultralong.checkpoint.formats.weight_map import model_weights
    from megatron_ultralong.program.json_file import JsonObject

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": args.layers,
        "hidden_size": args.hidden,
        "intermediate_size": args.ffn,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "vocab_size": args.vocab,
        "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = model_weights(model_config(JsonObject(config, "config.json")))
    shapes = [pair for w in weights for pair in zip(w.names, w.shapes, strict=True)]
    tensors = [(name, TensorInfo(torch.bfloat16, shape)) for name, shape in shapes]
    writer = SafetensorsWriter(folder, tensors, 5 * 10**9)
    bits = np.random.Generator(np.random.SFC64(0))
    for name, info in tensors:
        values = bits.integers(0, 2**64, size=-(-int(np.prod(info.shape)) // 4), dtype=np.uint64)
        values &= np.uint64(0xBFFF_BFFF_BFFF_BFFF)  # exponents of magnitudes below 2: all finite
        flat = values.view(np.int16)[: int(np.prod(info.shape))]
        writer.write(name, torch.from_numpy(flat).view(torch.bfloat16).reshape(info.shape))
    writer.finish()


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory in GiB of a command; its output is shown where it fails."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{output.decode()}")
    return seconds, usage.ru_maxrss / 2**20


def forget(folder: Path) -> int:
    """Put the files of ``folder`` out of the page cache; their bytes."""
    os.sync()
    size = 0
    for path in folder.rglob("*"):
        if path.is_file():
            size += path.stat().st_size
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return size


class Table:
    """Rows of steps, printed as they end."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.copy_seconds: list[float] = []
        print("| step | s | GB/s | of cp + sync | peak RSS, GiB |\n| --- | --- | --- | --- | --- |")

    def row(self, name: str, seconds: float, num_bytes: int, gib: float) -> None:
        """Print a row."""
        rate = num_bytes / seconds / 1e9
        share = min(self.copy_seconds) / seconds
        print(f"| {name} | {seconds:.1f} | {rate:.3f} | {share:.2f} | {gib:.2f} |", flush=True)

    def copy(self) -> None:
        """Copy the source, and wait for the disk."""
        target = self.source.with_name("copy")
        size = forget(self.source)
        start = time.monotonic()
        subprocess.run(["cp", "-r", str(self.source), str(target)], check=True)
        subprocess.run(["sync"], check=True)
        self.copy_seconds.append(time.monotonic() - start)
        shutil.rmtree(target)
        os.sync()
        self.row("cp -r, then sync", self.copy_seconds[-1], size, 0.0)

    def convert(self, name: str, *arguments: str | Path, read: tuple[Path, ...]) -> None:
        """A verb of ``ultralong convert`` on the folders ``read``."""
        sizes = [forget(folder) for folder in read]
        command = [sys.executable, "-m", "megatron_ultralong", "convert", *map(str, arguments)]
        seconds, gib = run(command)
        self.row(name, seconds, sizes[0], gib)


def measure(args: argparse.Namespace, work: Path) -> None:
    """All steps; a folder is removed when no later step reads it."""
    hf, megatron, out = work / "hf", work / "megatron", work / "export"
    run([sys.executable, __file__, *sys.argv[1:], "--make", str(hf)])
    table = Table(hf)
    quick = ("--no-verify",)
    table.copy()
    table.convert("import", "import", hf, megatron, "--no-tokenizer", *quick, read=(hf,))
    table.convert("verify source, import", "verify", hf, megatron, read=(hf, megatron))
    table.convert("export", "export", megatron, out, *quick, read=(megatron,))
    table.convert("verify source, export", "verify", hf, out, read=(hf, out))
    shutil.rmtree(out)
    table.copy()
    if args.meta_shards:
        shards = ("--format", "meta", "--num-shards", str(args.meta_shards))
        table.convert("export to Meta", "export", megatron, out, *shards, *quick, read=(megatron,))
        table.convert("verify source, Meta", "verify", hf, out, read=(hf, out))
        shutil.rmtree(megatron)
        table.convert(
            "import from Meta", "import", out, megatron, "--no-tokenizer", *quick, read=(out,)
        )
        table.convert("verify Meta, import", "verify", out, megatron, read=(out, megatron))


def main() -> None:
    """Parse the command line, and clean up whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder that may be filled")
    for name, value in {
        "layers": 32, "hidden": 4096, "ffn": 14336, "heads": 32, "kv-heads": 8, "vocab": 128256
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--meta-shards", type=int, default=0, help="convert to Meta and back too")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_source(args, args.make)
        return
    work = args.work / "benchmark"
    work.mkdir(parents=True)
    from importlib.metadata import version

    print(f"{datetime.date.today()}, torch {version('torch')}, Python {platform.python_version()}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {' '.join(sys.argv)}\n")
    try:
        measure(args, work)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
