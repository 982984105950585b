"""One long prompt through ``evaluate harness`` beside ``evaluate ruler``: seconds and peak memory.

    python -m tools.benchmark_harness --work FOLDER

A random model of Llama 3.1 8B's shape (16 GB in FOLDER, kept for the next run) reads samples of
RULER and writes 128 tokens behind each, by each command, in one process. A prompt's seconds are
those of a command of two prompts less those of a command of one: the harness reads its task files
at every start. A multiple-choice question with the same text in front of two choices stands beside
it.
Asked: the harness takes at most 1.1 times the memory, and at least 0.9 of the speed. Figures of the
project: ``benchmarks/harness.md``.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import yaml

from megatron_ultralong.evaluation.harness.command import evaluate_harness
from megatron_ultralong.evaluation.models import language_models
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


def write_tasks(folder: Path, prompts: Sequence[str]) -> None:
    """Two tasks of a question for each prompt: a text to write, and two choices to compare."""
    with (folder / "prompts.jsonl").open("w") as file:
        for prompt in prompts:
            row = {"prompt": prompt, "answer": "1", "choices": ["7", "8"], "label": 0}
            file.write(json.dumps(row) + "\n")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "prompts.jsonl")}},
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


class Measured(NamedTuple):
    """What a command takes."""

    command: float
    """Seconds with one prompt."""
    prompt: float
    """Seconds of one prompt more."""
    peak: float
    """GiB; nan on a CPU."""


def measure(model: LanguageModel, run: Callable[[int], object]) -> Measured:
    """Run the command with one prompt twice, the first time unmeasured, and with two."""
    is_gpu, seconds, peak = torch.cuda.is_available(), [], math.nan
    for num_prompts in (1, 1, 2):
        model.generate([[1, 2]], max_new_tokens=1)  # keys and values of the last run are dropped
        if is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        run(num_prompts)
        if is_gpu:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() / 2**30
        seconds.append(time.perf_counter() - start)
    return Measured(seconds[1], seconds[2] - seconds[1], peak)


def compare(subject: language_models.Subject[LanguageModel], length: int) -> None:
    """Print both commands side by side."""

    def ruler(num_samples: int) -> RulerConfig:
        return RulerConfig(
            lengths=(length,),
            tasks=(TASK,),
            num_samples=num_samples,
            beyond_trained_positions=True,
        )

    samples = RulerSamples(ruler(2), subject.tokenizer)
    tokens = [samples.sample(TASK, length, number).tokens for number in range(2)]
    begin = len(subject.tokenizer.begin_ids)
    with tempfile.TemporaryDirectory() as name:
        write_tasks(Path(name), [subject.tokenizer.decode(ids[begin:]) for ids in tokens])

        def harness(task: str) -> Callable[[int], object]:
            config = HarnessConfig(
                tasks=(task,), include_path=name, max_length=length, beyond_trained_positions=True
            )
            return lambda limit: evaluate_harness(dataclasses.replace(config, limit=limit), subject)

        rows: dict[str, Callable[[int], object]] = {
            "`evaluate ruler`": lambda number: evaluate_ruler(ruler(number), subject),
            "`evaluate harness`, a text to write": harness("long_answer"),
            "`evaluate harness`, two choices": harness("long_choices"),
        }
        found = {what: measure(subject.model, run) for what, run in rows.items()}
    base = found["`evaluate ruler`"]
    print(f"\n{tokens[0].size:,} tokens of a prompt, {ANSWER_TOKENS} to write\n")
    print("| command | a prompt, s | speed, ruler = 1 | peak GiB | memory, ruler = 1 | whole, s |")
    print("| --- " * 6 + "|")
    for what, its in found.items():
        print(
            f"| {what} | {its.prompt:.2f} | {base.prompt / its.prompt:.2f} | {its.peak:.2f} "
            f"| {its.peak / base.peak:.3f} | {its.command:.2f} |"
        )


def main() -> None:
    """Make the model if it is not there, and measure."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
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
    precision: Literal["bf16", "fp32"] = "bf16" if torch.cuda.is_available() else "fp32"
    models = ModelsConfig((base,), precision)
    tokenizer = PromptTokenizer(tokenizer_folder(base))
    with language_models.open_language_models(models) as in_turn, torch.no_grad():
        subject = language_models.Subject(
            next(in_turn), model_facts(base, precision), tokenizer, CostConfig()
        )
        compare(subject, arguments.length)


if __name__ == "__main__":
    main()
