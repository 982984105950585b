"""A whole job at true size on the GPUs of this machine, by the commands that a user types.

    python tools/benchmark_pretrain.py --work FOLDER --gpus 4 --seq-length 524288 --train-iters 2 \
        -- --tensor-model-parallel-size 2 --context-parallel-size 2 --sequence-parallel \
        --offload-activations
    python tools/benchmark_pretrain.py --work FOLDER --gpus 2 --layers 4 --train-iters 5 \
        -- --tensor-model-parallel-size 1 --no-sequence-parallel --context-parallel-size 2
    python tools/benchmark_pretrain.py --work FOLDER --gpus 2 --layers 4 --train-iters 5 \
        -- --tensor-model-parallel-size 1 --no-sequence-parallel --context-parallel-size 2 \
        --cp-comm-type a2a

`plan` says what a step will take, or what is wrong with the flags, before anything is made. A
random model of Llama 3.1 8B's shape (16 GB) is imported; source code becomes rows; `pretrain` runs
with what stands behind ``--`` (what it does not name is the recipe's, TP 8 with it). With
``--save`` its checkpoint is resumed for one iteration more and exported; then the same iterations
are trained without a stop, and every tensor of weights and optimizer states is compared. FOLDER
keeps the model and the rows for the next run. Each command's time is printed, and what was
measured beside the plan.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from megatron_ultralong.model.shape import MODELS
from megatron_ultralong.plan.hardware import hardware_of_device
from megatron_ultralong.program.aside import whole

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "examples" / "demo" / "base"
RECIPE = "llama3.1-8b-1m"
GIB = 2**30


def main() -> None:
    """Run all steps that are not done."""
    arguments, flags = _parse(sys.argv[1:])
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    rows = work / f"rows-{arguments.seq_length}"
    run_flags = ["--seq-length", str(arguments.seq_length), "--global-batch-size", "1", *flags]
    plan = work / "plan.json"
    words = (RECIPE, "--no-search", "--gpus", str(arguments.gpus), "--gpu", arguments.gpu or _gpu())
    words += ("--model", str(shape_folder(work, arguments.model, arguments.layers)))
    ultralong("plan", *words, "--json", str(plan), *run_flags)
    planned = json.loads(plan.read_text())["chosen"]
    random_base(work, arguments.model, arguments.layers)
    if not rows.exists():
        library = sysconfig.get_path("purelib")
        words = ("--source", f"code={library}/*/*.py", "--skip-bad", "--valid-fraction", "0")
        words += ("--tokenizer", str(TOKENIZER), "--seq-length", str(arguments.seq_length))
        ultralong("prepare", *words, "--output", str(rows))
    if not arguments.train_iters:
        return
    saved, whole_run = work / "run", work / "run-without-a-stop"
    for folder in (saved, whole_run, work / "exported"):
        shutil.rmtree(folder, ignore_errors=True)
    run_flags += ["--load", str(work / "base"), "--data-path", str(rows), "--log-interval", "1"]
    run_flags += ["--lr-warmup-iters", "1"]
    if arguments.save:  # a rate that does not depend on the number of iterations
        run_flags += ["--save-interval", "0", "--deterministic-mode"]
        run_flags += ["--lr-decay-style", "constant"]
    to_save = ["--save", str(saved)] if arguments.save else []
    report(planned, pretrain(arguments.gpus, arguments.train_iters, [*run_flags, *to_save]))
    if arguments.save:
        iterations = arguments.train_iters + 1
        report(planned, pretrain(arguments.gpus, iterations, [*run_flags, *to_save]))
        ultralong("convert export", str(saved), str(work / "exported"))
        pretrain(arguments.gpus, iterations, [*run_flags, "--save", str(whole_run)])
        compare(*(folder / f"iter_{iterations:07d}" for folder in (saved, whole_run)))


def compare(resumed: Path, whole_run: Path) -> None:
    """Say how many tensors of two checkpoints are equal bit for bit, weights and states of the
    optimizer; exit with an error if one is not.
    """
    import torch
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    found, folders = (
        FileSystemReader(resumed).read_metadata().state_dict_metadata,
        (resumed, whole_run),
    )
    tensors = {n: t for n, t in found.items() if isinstance(t, TensorStorageMetadata)}
    differing = []
    for name, stored in tensors.items():  # one at a time: all are larger than a GPU
        read = [{name: torch.empty(stored.size, dtype=stored.properties.dtype)} for _ in folders]
        for folder, into in zip(folders, read, strict=True):
            load(into, checkpoint_id=folder, no_dist=True)
        if not torch.equal(*(into[name].view(torch.uint8) for into in read)):
            differing.append(name)
    equal = f"{len(tensors) - len(differing)} of {len(tensors)} tensors bit-equal"
    print(f"resumed, and trained without a stop: {equal}")
    if differing or not tensors:
        sys.exit(f"error: not equal in {resumed} and {whole_run}: {', '.join(differing)}")


def shape_folder(work: Path, model: str, layers: int) -> Path:
    """``work/shape``: a ``config.json`` of transformers in the shape of ``model``; made if it is
    not there.
    """
    made, named = work / "shape.json", {"model": model, "layers": layers}
    if made.exists() and json.loads(made.read_text()) != named:
        sys.exit(
            f"error: {work} has {made.read_text()}, not {json.dumps(named)}: name another --work"
        )
    made.write_text(json.dumps(named))
    if not (work / "shape").exists():
        from transformers import LlamaConfig

        shape = MODELS[model]
        config = LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.ffn_hidden_size,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_query_groups,
            head_dim=shape.kv_channels,
            num_hidden_layers=layers or shape.num_layers,
            max_position_embeddings=shape.max_position_embeddings,
            rope_theta=shape.rotary_base,
            rms_norm_eps=shape.norm_epsilon,
            tie_word_embeddings=not shape.untie_embeddings_and_output_weights,
            dtype="bfloat16",
        )
        with whole(work / "shape") as aside:
            config.save_pretrained(aside)
    return work / "shape"


def random_base(work: Path, model: str, layers: int) -> Path:
    """``work/base``: a checkpoint of random weights in the shape of ``model``, with the demo's
    tokenizer; made if it is not there.
    """
    shape = shape_folder(work, model, layers)
    if not (work / "hf").exists():
        with whole(work / "hf") as aside:
            script = ["-c", _MODEL, str(aside), str(shape)]
            run("random model in transformers", [sys.executable, *script])
            for file in TOKENIZER.glob("tokenizer*"):
                shutil.copy(file, aside)
    if not (work / "base").exists():
        ultralong("convert import", str(work / "hf"), str(work / "base"))
    return work / "base"


_MODEL = """
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
LlamaForCausalLM(LlamaConfig.from_pretrained(sys.argv[2])).save_pretrained(sys.argv[1])
"""


def pretrain(gpus: int, train_iters: int, flags: list[str]) -> list[tuple[float, float, float]]:
    """Seconds, peak GiB and loss of every iteration; the run's output is shown."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(gpus), "-m", "megatron_ultralong"]
    name = f"pretrain to iteration {train_iters}"
    lines = run(name, [*torchrun, "pretrain", RECIPE, "--train-iters", str(train_iters), *flags])
    found = re.findall(
        r"iteration +\d+/.*lm loss: (\S+).*time \(ms\): ([\d.]+).*peak GiB: ([\d.]+)", lines
    )
    return [(float(ms) / 1e3, float(gib), float(loss)) for loss, ms, gib in found]


def report(planned: dict[str, float], iterations: list[tuple[float, float, float]]) -> None:
    """What was measured, beside the plan."""
    tensors = planned["peak_bytes"] / GIB
    print("| iteration | step, s | planned | peak GiB | planned | loss |\n" + "| --- " * 6 + "|")
    for number, (seconds, gib, loss) in enumerate(iterations, 1):
        print(
            f"| {number} | {seconds:.1f} | {planned['step_seconds']:.1f} "
            f"| {gib:.2f} | {tensors:.2f} | {loss:.4f} |",
            flush=True,
        )


def _gpu() -> str:
    import torch

    is_there = torch.cuda.is_available()
    return hardware_of_device(torch.cuda.get_device_name() if is_there else None).name


def ultralong(verb: str, *words: str) -> str:
    """A verb of the command line, as a process of its own."""
    return run(verb, [sys.executable, "-m", "megatron_ultralong", *verb.split(), *words])


def run(name: str, command: list[str]) -> str:
    """Output of a command; shown as it comes where it is `pretrain`, else where it fails."""
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    is_shown = name.startswith("pretrain")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if is_shown:
            print(line, end="", flush=True)
    if status := process.wait():
        sys.exit(f"{name}: exit status {status}\n{'' if is_shown else ''.join(lines)}")
    print(f"{time.monotonic() - start:7.1f} s  {name}", flush=True)
    return "".join(lines)


def _parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    own, flags = (words, [])
    if "--" in words:
        place = words.index("--")
        own, flags = words[:place], words[place + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for all files; 300 GB with --save")
    add("--gpus", type=int, required=True, help="ranks that torchrun starts")
    add("--gpu", default="", help="as `ultralong plan` names it; empty: this machine's")
    add("--seq-length", type=int, default=131_072, help="tokens of a row")
    add(
        "--train-iters",
        type=int,
        default=2,
        help="iterations before the checkpoint; 0: make model, rows and plan",
    )
    add("--model", choices=sorted(MODELS), default="llama3.1-8b", help="whose shape to take")
    add("--layers", type=int, default=0, help="of the model; 0: all of its shape")
    add(
        "--save",
        action="store_true",
        help="save, resume for an iteration more, export, and compare with a run without a stop",
    )
    print(f"`python {' '.join(sys.argv)}`, {datetime.date.today().isoformat()}", flush=True)
    return parser.parse_args(own), flags


if __name__ == "__main__":
    main()
