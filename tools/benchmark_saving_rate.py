"""Saving and loading checkpoints beside ``dd``, to and from the same disk, and to memory.

::

    python tools/benchmark_saving_rate.py --output FOLDER --gigabytes 8 --ranks 2

A real model with Adam's states, spread over context parallel ranks: one GPU each, or processes on
the CPU. In each round it

* saves as ``pretrain --no-async-save`` does, the plan and the commit included
* reads the files by ``dd``, and loads them as a resumed run does, checksums included, both with
  none of them in the page cache
* saves to ``/dev/shm`` if there is room
* writes the same files to the disk by ``dd``, all at once and with data on the disk at the end
  (``conv=fsync``), and as many zeros, which some disks take for nothing; by the block size that was
  faster at the start
* on GPUs saves in the background: how long training waits for it, and a step beside its writing
  over one alone, before and after it

Ratios are taken round by round, as other work disturbs neighbours alike.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from megatron.core.distributed import finalize_model_grads

from megatron_ultralong.checkpoint.disk.folder import iteration_folder
from megatron_ultralong.checkpoint.formats.megatron import check_tensors, listed_files
from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.run import CheckpointConfig
from megatron_ultralong.mcore import cpu, model
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.model.shape import ModelConfig, num_parameters
from megatron_ultralong.program.rank_values import every_rank
from megatron_ultralong.training import optimizer
from megatron_ultralong.training.saving.checkpoint_writer import CheckpointWriter
from megatron_ultralong.training.saving.state_dict import checkpoint_state, load_checkpoint

BYTES = 14
"""Of a weight in a checkpoint: bf16, and three float32."""
BLOCKS = ("256K", "4M")
DD = "dd of the same bytes"
MEMORY = Path("/dev/shm")
SEQ_LENGTH = 32768 if torch.cuda.is_available() else 512


def shape(gigabytes: float) -> ModelConfig:
    """A Llama that fills so much; its layers are a quarter of the 8B's."""
    values = {
        "hidden_size": 2048,
        "ffn_hidden_size": 7168,
        "num_attention_heads": 16,
        "num_query_groups": 4,
        "kv_channels": 128,
        "vocab_size": 16384,
        "norm_epsilon": 1e-5,
        "rotary_base": 5e5,
        "max_position_embeddings": SEQ_LENGTH,
        "untie_embeddings_and_output_weights": True,
    }
    one, two = (num_parameters(ModelConfig(num_layers=n, **values)) for n in (1, 2))
    layers = max(1, round((gigabytes * 1e9 / BYTES - one) / (two - one)) + 1)
    return ModelConfig(num_layers=layers, **values)


class State:
    """A model and its optimizer, between two steps."""

    def __init__(self, config: ModelConfig, ranks: int, groups: Any) -> None:
        self.config = config
        parallel = ParallelConfig(context_parallel_size=ranks)
        megatron = model.transformer_config(config, parallel, params_dtype=torch.bfloat16)
        built = model.build_model(
            config, megatron, groups, seq_length=SEQ_LENGTH, rope_scaling=None
        )
        for parameter in built.parameters():
            torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.02)
        self.chunks = optimizer.wrap_model([built.to(torch.bfloat16)])
        options = OptimizerConfig()
        self.optimizer = optimizer.build_optimizer(self.chunks, options, torch.bfloat16)
        self.scheduler = optimizer.build_scheduler(self.optimizer, options, 10)
        optimizer.make_states(self.chunks, self.optimizer)
        for tensor in self.tensors():
            tensor.uniform_()  # a disk may take zeros for nothing

    def tensors(self) -> list[torch.Tensor]:
        """Adam's means of this rank."""
        states = [s for p in self.optimizer.chained_optimizers for s in p.optimizer.state.values()]
        return [x for state in states for name, x in state.items() if name != "step"]

    def step(self) -> float:
        """Seconds of a step of training, of random tokens."""
        dist.barrier()
        begin = time.perf_counter()
        (chunk,) = self.chunks
        chunk.zero_grad_buffer()
        length = SEQ_LENGTH // dist.get_world_size()
        tokens = torch.randint(self.config.vocab_size, (1, length + 1), device=cpu.device())
        chunk(tokens[:, :-1], None, None, labels=tokens[:, 1:]).mean().backward()
        finalize_model_grads(self.chunks)
        self.optimizer.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def steps(self, count: int) -> float:
        """The median of some."""
        return statistics.median(self.step() for _ in range(count))

    def sharded(self) -> dict[str, Any]:
        """What a checkpoint is written of."""
        parts = (self.chunks, self.optimizer, self.scheduler)
        return checkpoint_state(*parts, {"iteration": 1, "consumed_samples": 1}, self.config)

    def load(self, folder: Path) -> None:
        """As a resumed run; checks that everything came back."""
        before = [tensor.clone() for tensor in self.tensors()]
        for tensor in self.tensors():
            tensor.zero_()
        dist.barrier()
        with timed("load"):
            listed = listed_files(folder)
            assert listed is not None
            check_tensors(folder, listed)
            load_checkpoint(folder, self.chunks, self.optimizer, self.scheduler)
            dist.barrier()
        same = all(map(torch.equal, before, self.tensors()))
        assert same, "a loaded state is not what was saved"


WRITERS: dict[Path, CheckpointWriter] = {}
"""By folder; they keep their memory, as a run's does."""
SECONDS: defaultdict[str, list[float]] = defaultdict(list)
"""By name of what was done, in every round; on this rank."""
BESIDE_STEPS = "save beside steps"
BESIDE: list[float] = []
"""Seconds of a step while a checkpoint was written, in every round."""
ALONE: list[float] = []
"""The same before and after it."""
WRITING: list[bool] = []
"""Whether it was still being written when the steps were over."""
PROCESSOR: defaultdict[str, list[float]] = defaultdict(list)
"""The same of seconds of processor of this rank."""


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    """Append the time of a block to :data:`SECONDS`."""
    begin, used = time.perf_counter(), processor()
    yield
    SECONDS[name].append(time.perf_counter() - begin)
    PROCESSOR[name].append(processor() - used)


def processor() -> float:
    """Seconds of processor that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def save(state: State, root: Path, name: str, *, steps: int = 0) -> Path:
    """Save, beside so many steps if there are some, and wait for the disk; the folder."""
    # What a writer asks of the folder of a run, which has no owner here.
    run = SimpleNamespace(
        root=root, owner_number=1, is_mine=lambda: True, write_identity=lambda: None
    )
    if root not in WRITERS:
        WRITERS[root] = CheckpointWriter(run, CheckpointConfig())
    writer = WRITERS[root]
    if dist.get_rank() == 0:
        os.sync()  # what others have left to be written
    dist.barrier()
    with timed(name):
        with timed(f"{name}: training waits"):
            writer.start(1, state.sharded, {}, waits=not steps)
        if steps:
            BESIDE.append(state.steps(steps))
            WRITING.append(writer.is_writing)
        stands = writer.finish()
        dist.barrier()
    assert stands, "it could not be written"
    return iteration_folder(root, 1)


ZEROS, NOTHING = Path("/dev/zero"), Path("/dev/null")


def dd(pairs: list[tuple[Path, Path, int]], block: str) -> None:
    """Copies from, to, and so many bytes, all at once; into files through to the disk."""
    commands = [
        ["dd", f"if={source}", f"of={target}", f"bs={block}", f"count={size}", "iflag=count_bytes"]
        + ([] if target == NOTHING else ["conv=fsync"])
        for source, target, size in pairs
    ]
    children = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
    if any([child.wait() for child in children]):
        raise SystemExit(f"{commands[0]} failed")


def forget(folder: Path) -> None:
    """Take the files of a folder out of the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def faster_block(paths: list[Path]) -> str:
    """The block size with which dd writes faster here."""
    taken = {}
    for size in BLOCKS:
        begin = time.perf_counter()
        dd([(ZEROS, path, 2**28) for path in paths], size)
        taken[size] = time.perf_counter() - begin
    print("dd by blocks: " + ", ".join(f"{size} {took:.2f} s" for size, took in taken.items()))
    return min(BLOCKS, key=lambda size: taken[size])


def rounds(arguments: argparse.Namespace, state: State) -> int:
    """All rounds, on every rank; returns the bytes of a checkpoint."""
    is_main, begin = dist.get_rank() == 0, time.perf_counter()
    others = [arguments.output / f"dd-{index}" for index in range(arguments.ranks)]
    block = every_rank(faster_block(others) if is_main else None)[0]
    in_memory = every_rank(Path(tempfile.mkdtemp(dir=MEMORY)) if is_main else None)[0]
    num_bytes = 0
    try:
        for number in range(arguments.rounds):
            num_bytes = one_round(arguments.output / "run", in_memory, others, block, state)
            took = max(every_rank(time.perf_counter() - begin))
            if is_main:
                print(f"round {number + 1}, until {took:.0f} s: {figures(num_bytes)}", flush=True)
            if took > arguments.seconds:
                break
    finally:
        if is_main:
            shutil.rmtree(in_memory, ignore_errors=True)
            for path in others:
                path.unlink(missing_ok=True)
    return num_bytes


def one_round(root: Path, in_memory: Path, others: list[Path], block: str, state: State) -> int:
    """Everything once; returns the bytes of a checkpoint."""
    is_main = dist.get_rank() == 0
    folder = save(state, root, "save")
    files = sorted(folder.glob("*.distcp"))
    sizes = [path.stat().st_size for path in files]
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    if is_main:
        forget(folder)
        with timed("dd reading"):
            dd([(file, NOTHING, size) for file, size in zip(files, sizes, strict=True)], block)
        forget(folder)
    state.load(folder)
    kept = None
    if every_rank(shutil.disk_usage(MEMORY).free > 1.5 * num_bytes)[0]:
        kept = save(state, in_memory, "save to memory")
    if is_main:
        sources = {"dd of zeros": [ZEROS] * len(files)}
        if kept is not None:
            sources[DD] = [kept / file.name for file in files]
        for name, paths in sources.items():
            for other in others:
                other.unlink(missing_ok=True)
            os.sync()
            with timed(name):
                dd(list(zip(paths, others, sizes, strict=False)), block)
        if kept is not None:
            shutil.rmtree(kept)
    if torch.cuda.is_available():
        save_beside_steps(state, root)
    if is_main:
        shutil.rmtree(folder)
    return num_bytes


def save_beside_steps(state: State, root: Path) -> None:
    """Steps alone, beside a save, and alone."""
    state.step()  # the first makes its kernels
    before = state.steps(3)
    steps = max(every_rank(max(3, round(SECONDS["save"][-1] / before))))
    save(state, root, BESIDE_STEPS, steps=steps)
    ALONE.append((before + state.steps(3)) / 2)
    if dist.get_rank() == 0:
        print(
            f"{steps} steps beside a save: {BESIDE[-1]:.3f} s each, {ALONE[-1]:.3f} s alone; it "
            f"was {'still' if WRITING[-1] else 'no longer'} being written at their end"
        )


def figures(num_bytes: int) -> str:
    """GB/s of everything in the last round."""
    rates = [f"{name} {num_bytes / 1e9 / times[-1]:.2f}" for name, times in SECONDS.items()
             if not name.endswith("waits") and name != BESIDE_STEPS]  # fmt: skip
    return ", ".join(rates) + " GB/s"


def rank(number: int, arguments: argparse.Namespace, store: str) -> None:
    """One rank of the job."""
    os.environ.update(
        RANK=str(number), WORLD_SIZE=str(arguments.ranks), LOCAL_RANK=str(number),
        LOCAL_WORLD_SIZE=str(arguments.ranks),
    )  # fmt: skip
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(number)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=dist.FileStore(store, arguments.ranks),
        rank=number,
        world_size=arguments.ranks,
    )
    config = shape(arguments.gigabytes)
    with parallel_groups(ParallelConfig(context_parallel_size=arguments.ranks), 1) as groups:
        begin = time.perf_counter()
        state = State(config, arguments.ranks, groups)
        if number == 0:
            print(
                f"{torch.cuda.get_device_name() if on_gpu else 'CPU'}, torch {torch.__version__}, "
                f"{os.cpu_count()} cores, {arguments.ranks} rank(s), {config.num_layers} layers, "
                f"made in {time.perf_counter() - begin:.0f} s"
            )
        num_bytes = rounds(arguments, state)
        used = every_rank({name: statistics.median(times) for name, times in PROCESSOR.items()})
        if number == 0:
            report(num_bytes, used)
    dist.destroy_process_group()


def report(num_bytes: int, used: list[dict[str, float]]) -> None:
    """Medians, ratios round by round, and the processor's seconds of all ranks together."""
    print(f"a checkpoint of {num_bytes / 1e9:.2f} GB, {len(SECONDS['save'])} rounds, medians:")
    against = DD if DD in SECONDS else "dd of zeros"
    for name, times in SECONDS.items():
        middle = statistics.median(times)
        if name == BESIDE_STEPS:  # its time is that of the steps
            ratios = [one / other for one, other in zip(BESIDE, ALONE, strict=True)]
            waits = SECONDS[f"{name}: training waits"]
            print(
                f"  a step beside a save over one alone ({ALONE[-1]:.3f} s): "
                f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); "
                f"training waits {statistics.median(waits):.2f} s for the copies, the first time "
                f"{waits[0]:.2f} s"
            )
        if name == BESIDE_STEPS or name.endswith("waits"):
            continue
        line = f"  {name}: {middle:.2f} s, {num_bytes / 1e9 / middle:.2f} GB/s"
        base = "dd reading" if name == "load" else against
        if not name.startswith("dd"):
            ratios = [dd_s / one for dd_s, one in zip(SECONDS[base], times, strict=True)]
            line += f", {statistics.median(ratios):.2f} of {base} ({min(ratios):.2f} to "
            line += f"{max(ratios):.2f})"
            seconds = sum(one[name] for one in used) / (num_bytes / 1e9)
            line += f"; {seconds:.2f} s of processor per GB"
        print(line, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder on the disk to measure")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of a checkpoint, about")
    parser.add_argument("--ranks", type=int, default=1, help="that save it; one GPU each, if any")
    parser.add_argument("--rounds", type=int, default=3, help="at the most")
    parser.add_argument("--seconds", type=float, default=60.0, help="no round begins after it")
    arguments = parser.parse_args()
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and arguments.ranks > gpus:
        raise SystemExit(f"--ranks {arguments.ranks} needs as many GPUs, and there are {gpus}")
    (arguments.output / "run").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            rank, args=(arguments, f"{folder}/store"), nprocs=arguments.ranks, start_method="spawn"
        )


if __name__ == "__main__":
    main()
