"""One long prompt through ``evaluate harness`` beside ``evaluate ruler``: seconds and peak memory.

    python -m tools.benchmark_harness --work FOLDER

A random model of Llama 3.1 8B's shape (16 GB in FOLDER, kept for the next run) reads one sample of
RULER and writes 128 tokens behind it, twice by each command, in one process; the second time
counts. A multiple-choice question with the same text in front of two choices stands beside it.
Asked: the harness takes at most 1.1 times the memory, and at least 0.9 of the speed. Figures of the
project: ``benchmarks/harness.md``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import yaml

from megatron_ultralong.evaluation.harness.command import evaluate_harness
from megatron_ultralong.evaluation.models import opening
from megatron_ultralong.evaluation.models.facts import model_facts, tokenizer_folder
from megatron_ultralong.evaluation.models.interface import LanguageModel
from megatron_ultralong.evaluation.options import CostConfig, HarnessConfig, ModelsConfig
from megatron_ultralong.evaluation.ruler.evaluation import RulerSamples, evaluate_ruler
from megatron_ultralong.evaluation.ruler.parameters import RulerConfig
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from tools.benchmark_pretrain import random_base

TASK = "niah_single_1"
ANSWER_TOKENS = 128
"""That RULER lets the model write for this task."""


def write_tasks(folder: Path, prompt: str) -> None:
    """Two tasks of one question each: a text to write, and two choices to compare."""
    (folder / "prompt.jsonl").write_text(
        json.dumps({"prompt": prompt, "answer": "1", "choices": ["7", "8"], "label": 0}) + "\n"
    )
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "prompt.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
    }
    tasks = {
        "long_answer": {
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": [], "max_gen_toks": ANSWER_TOKENS, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
        "long_choices": {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc"}],
        },
    }
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **task}))


def measure(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds and peak GiB of the second of two calls; no memory (nan) on a CPU."""
    is_gpu = torch.cuda.is_available()
    seconds = peak = float("nan")
    for _ in range(2):
        if is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if is_gpu:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() / 2**30
        seconds = time.perf_counter() - start
    return seconds, peak


def compare(subject: opening.Subject[LanguageModel], length: int) -> None:
    """Print both commands side by side."""
    ruler = RulerConfig(
        lengths=(length,), tasks=(TASK,), num_samples=1, beyond_trained_positions=True
    )
    sample = RulerSamples(ruler, subject.tokenizer).sample(TASK, length, 0)
    begin = len(subject.tokenizer.begin_ids)
    prompt = subject.tokenizer.decode(sample.tokens[begin:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder, prompt)

        def harness(task: str) -> Callable[[], object]:
            config = HarnessConfig(
                (task,),
                include_path=name,
                max_length=length,
                beyond_trained_positions=True,
            )
            return lambda: evaluate_harness(config, subject)

        rows = {
            "`evaluate ruler`": measure(lambda: evaluate_ruler(ruler, subject)),
            "`evaluate harness`, a text to write": measure(harness("long_answer")),
            "`evaluate harness`, two choices": measure(harness("long_choices")),
        }
    seconds, peak = rows["`evaluate ruler`"]
    print(f"\n{sample.tokens.size:,} tokens of prompt, {ANSWER_TOKENS} to write\n")
    print("| command | s | speed, ruler = 1 | peak GiB | memory, ruler = 1 |")
    print("| --- " * 5 + "|")
    for what, (its_seconds, its_peak) in rows.items():
        print(
            f"| {what} | {its_seconds:.2f} | {seconds / its_seconds:.2f} "
            f"| {its_peak:.2f} | {its_peak / peak:.3f} |"
        )


def main() -> None:
    """Make the model if it is not there, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the model")
    parser.add_argument("--model", default="llama3.1-8b", help="whose shape to take")
    parser.add_argument("--layers", type=int, default=0, help="of the model; 0: all of its shape")
    parser.add_argument("--load", default="", help="a checkpoint to take instead")
    parser.add_argument("--length", type=int, default=131_072, help="of prompt and answer")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    base = arguments.load or str(random_base(arguments.work, arguments.model, arguments.layers))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    packages = ", ".join(f"{one} {version(one)}" for one in ("torch", "megatron-core", "lm_eval"))
    print(f"{gpu}, {packages}, {datetime.date.today().isoformat()}", flush=True)
    precision = "bf16" if torch.cuda.is_available() else "fp32"
    models = ModelsConfig((base,), precision)
    tokenizer = PromptTokenizer(tokenizer_folder(base))
    with opening.language_models_in_turn(models) as in_turn, torch.no_grad():
        subject = opening.Subject(
            next(in_turn), model_facts(base, precision), tokenizer, CostConfig()
        )
        compare(subject, arguments.length)


if __name__ == "__main__":
    main()
