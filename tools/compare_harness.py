"""`evaluate harness` beside the harness's own ``hf`` model on the export, in float32.

::

    ultralong convert export RUN EXPORTED
    torchrun --nproc-per-node 2 -m tools.compare_harness RUN EXPORTED

The tasks are the paper's five and one of every kind (:mod:`tools.harness_data`), plain, with solved
examples, and in the chat template. Each layout of the ranks that the model can be split into is
asked the same. Log-likelihoods agree to 1e-4, strings and scores are equal, else it ends with 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.evaluation.harness.command import evaluate_harness
from megatron_ultralong.evaluation.harness.offline import offline
from megatron_ultralong.evaluation.models import language_models
from megatron_ultralong.evaluation.models.facts import model_facts, tokenizer_folder
from megatron_ultralong.evaluation.options import CostConfig, HarnessConfig, ModelsConfig
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError
from tools.harness_data import FIVE, KINDS, write_five, write_tasks

TOLERANCE = 1e-4
"""Of a log-likelihood, relative to its size above one nat: sums of float32 on both sides, and
angles that transformers rounds."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Tasks, and how they are asked."""

    name: str
    tasks: tuple[str, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of :class:`HarnessConfig`."""


_CHAT = {
    "limit": 4,
    "num_fewshot": 2,
    "apply_chat_template": True,
    "gen_kwargs": ("max_gen_toks=24",),
    "confirm_run_unsafe_code": True,
}
CASES = (
    Case("plain", KINDS, {"limit": 6, "max_length": 96}),
    Case("few-shot", KINDS[1:], {"limit": 4, "num_fewshot": 3}),
    Case("chat", (*KINDS[1:], "humaneval_instruct"), _CHAT),
    Case("five", FIVE, {"gen_kwargs": ("max_gen_toks=20",), "confirm_run_unsafe_code": True}),
)
"""``max_length`` 96: texts are several windows, and prompts lose their beginning."""


def layouts(num_ranks: int, run: Path) -> dict[str, ParallelConfig]:
    """Layouts of all ranks that the checkpoint ``run`` can be split into, by their names."""
    if num_ranks == 1:
        return {"one rank": ParallelConfig()}
    model, found = load_metadata(run).model, {}
    for name in ("tensor_model", "context", "pipeline_model", "data"):
        sizes = {} if name == "data" else {f"{name}_parallel_size": num_ranks}
        if name == "context":
            sizes["context_parallel_size"] = sizes.pop("context_parallel_size")
        if name == "pipeline_model" and (rest := model.num_layers % num_ranks):
            first = model.num_layers // num_ranks + rest
            sizes["num_layers_in_first_pipeline_stage"] = first
        parallel = ParallelConfig(**sizes)
        try:
            parallel.check_model(model)
        except InputError:
            continue
        found[f"{name.partition('_')[0]} {num_ranks}"] = parallel
    return found


def by_hugging_face(exported: Path, case: Case, folder: Path) -> dict[str, Any]:
    """What the harness returns for its own model in this process."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM

    options = dict(case.options)
    os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    model = HFLM(  # loaded here: the harness would load it by accelerate
        AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32),
        tokenizer=str(exported),
        max_length=options.get("max_length") or None,
        batch_size=1,
    )
    chat = options.get("apply_chat_template", False)
    with offline(str(folder / "data"), allows_code=True):
        results: dict[str, Any] = simple_evaluate(
            model,
            tasks=list(case.tasks),
            task_manager=TaskManager(include_path=str(folder / "tasks")),
            num_fewshot=options.get("num_fewshot"),
            limit=options.get("limit"),
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            gen_kwargs=",".join(options.get("gen_kwargs", ())) or None,
            confirm_run_unsafe_code=True,
        )
    return results


def by_us(
    run: Path, parallel: ParallelConfig, cases: Sequence[Case], folder: Path, output: Path
) -> list[dict[str, Any]]:
    """What ``evaluate harness`` writes of the same, on the main rank; every rank calls it."""
    models = ModelsConfig((str(run),), "fp32", parallel=parallel)
    facts = model_facts(str(run), "fp32")
    tokenizer = PromptTokenizer(tokenizer_folder(str(run)))
    found = []
    with language_models.open_language_models(models) as in_turn, torch.no_grad():
        subject = language_models.Subject(next(in_turn), facts, tokenizer, CostConfig())
        for case in cases:
            config = HarnessConfig(
                tasks=case.tasks,
                include_path=str(folder / "tasks"),
                data=str(folder / "data"),
                micro_batch_size=3,
                output=str(output / case.name),
                **case.options,
            )
            if evaluate_harness(config, subject) is None:
                continue
            written = output / case.name / "lm_eval"
            results = json.loads((written / "results.json").read_text())
            results["samples"] = {
                path.stem.removeprefix("samples_"): list(map(json.loads, path.open()))
                for path in written.glob("samples_*.jsonl")
            }
            found.append(results)
    return found


@dataclasses.dataclass
class Agreement:
    """How far two results of one case are apart."""

    num_answers: int = 0
    num_strings: int = 0
    largest: float = 0.0
    """Difference of log-likelihoods, relative to their size where that is above one nat."""
    problems: list[str] = dataclasses.field(default_factory=list)

    def add(self, place: str, actual: Any, expected: Any) -> None:
        """Compare one value of each."""
        if isinstance(expected, float) and isinstance(actual, float):
            apart = abs(actual - expected) / max(1.0, abs(expected))
            self.largest = max(self.largest, apart)
            is_equal = apart <= TOLERANCE
        else:
            is_equal = actual == expected
        if not is_equal:
            self.problems.append(f"{place}: {actual!r} and {expected!r}")


def compare(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> Agreement:
    """Answers and scores of one case, by the harness's own results."""
    found = Agreement()
    for task, samples in expected["samples"].items():
        answers = {(one["doc_id"], one["filter"]): one for one in actual["samples"].get(task, ())}
        found.add(f"questions of {task}", len(answers), len(samples))
        for sample in samples:
            place = f"{task}, question {sample['doc_id']}"
            other = answers.get((sample["doc_id"], sample["filter"]), {"resps": []})
            pairs = [_flat(one["resps"]) for one in (other, sample)]
            found.add(f"answers to {place}", *map(len, pairs))
            for one, reference in zip(*pairs, strict=False):
                found.num_answers += 1
                found.num_strings += isinstance(reference, str)
                found.add(place, one, reference)
        for name, score in expected["results"][task].items():
            if isinstance(score, float) and "stderr" not in name:
                found.add(f"{task}, {name}", actual["results"][task].get(name), score)
    return found


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [item for part in value for item in _flat(part)]
    return [value]


def run_all(
    run: Path, exported: Path, cases: Sequence[Case], num_ranks: int, folder: Path
) -> dict[tuple[str, str], Agreement]:
    """Agreements by layout and case, on the main rank; every rank calls it."""
    is_main = not dist.is_initialized() or dist.get_rank() == 0
    expected = [by_hugging_face(exported, case, folder) for case in cases] if is_main else []
    if dist.is_initialized():
        dist.barrier()  # the others wait long for the harness's own model
    found: dict[tuple[str, str], Agreement] = {}
    for name, parallel in layouts(num_ranks, run).items():
        actual = by_us(run, parallel, cases, folder, folder / name)
        for case, one, reference in zip(cases if is_main else (), actual, expected, strict=True):
            found[name, case.name] = compare(one, reference)
    return found


def main() -> None:
    """Compare, print a table, and end with 1 where something differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="Megatron checkpoint")
    parser.add_argument("exported", type=Path, help="what `ultralong convert export` wrote of it")
    parser.add_argument("--cases", nargs="+", default=[case.name for case in CASES])
    arguments = parser.parse_args()
    cases = [case for case in CASES if case.name in arguments.cases]
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if num_ranks > 1:
        dist.init_process_group("gloo", timeout=datetime.timedelta(hours=6))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder / "tasks")
        write_five(folder / "data")
        found = run_all(arguments.run, arguments.exported, cases, num_ranks, folder)
    for (layout, case), one in found.items():
        verdict = "; ".join(one.problems[:3]) or "equal"
        print(
            f"{layout:12} {case:9} {one.num_answers:5} answers ({one.num_strings} strings), "
            f"log-likelihoods within {one.largest:.1e}: {verdict}"
        )
    sys.exit(any(one.problems for one in found.values()))


if __name__ == "__main__":
    main()
