"""What ``evaluate``'s verbs run: open the models that a command names, and ask them."""

import dataclasses
import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_ultralong.data.rows.manifest import load_manifest
from megatron_ultralong.evaluation import chat, commands, loss
from megatron_ultralong.evaluation.harness.command import evaluate_harness
from megatron_ultralong.evaluation.local import (
    graphwalks,
    local_benchmarks,
    longbench_v2,
    mrcr,
    nolima,
    ruler2,
)
from megatron_ultralong.evaluation.models import language_models
from megatron_ultralong.evaluation.models.facts import ModelFacts, model_facts, tokenizer_folder
from megatron_ultralong.evaluation.report.report import load_results
from megatron_ultralong.evaluation.results.result import plain_values
from megatron_ultralong.evaluation.retrieval.grid import evaluate_grid, needle_grid, passkey_grid
from megatron_ultralong.evaluation.ruler.evaluation import evaluate_ruler
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.output import check_output


def _retrieval(
    make_grid: Callable[..., Any], config: Any, subject: language_models.Subject[Any]
) -> None:
    """A grid of prompts put to one model, which scores them or writes the answers."""
    tokenizer = subject.tokenizer
    grid = make_grid(config, lambda text: tokenizer.encode(text).tolist(), tokenizer.sha256)
    evaluate_grid(grid, subject)


_EVALUATE: dict[str, Callable[[Any, language_models.Subject[Any]], Any]] = {
    "passkey": functools.partial(_retrieval, passkey_grid),
    "needle": functools.partial(_retrieval, needle_grid),
    "ruler": evaluate_ruler,
    "mrcr": mrcr.evaluate_mrcr,
    "graphwalks": graphwalks.evaluate_graphwalks,
    "ruler2": ruler2.evaluate_ruler2,
    "nolima": nolima.evaluate_nolima,
    "longbench_v2": longbench_v2.evaluate_longbench_v2,
    "lv_eval": local_benchmarks.evaluate_lv_eval,
    "infinitebench": local_benchmarks.evaluate_infinitebench,
    "chat": chat.evaluate_chat,
    "harness": evaluate_harness,
}
"""Called with a benchmark's own options and a model."""


def run(command: Any) -> None:
    """A benchmark of each model in turn; ``evaluate loss`` of all in one table.

    ``command`` is checked: see :func:`~megatron_ultralong.evaluation.early_checks.check_command`.

    Raises:
        InputError: the benchmark's own, or an output folder holds something else.
    """
    (name, config), models = commands.benchmark_of(command), command.models
    facts = [model_facts(load, models.precision) for load in models.load]
    if name == "loss":
        separator_ids = load_manifest(config.data_path).separator_ids
        with language_models.open_scorers(models) as scorers:
            loss.evaluate_loss(config, list(scorers), separator_ids, [one.record for one in facts])
        return
    configs = [_config_of(config, one.name, len(facts)) for one in facts]
    tokenizers = [PromptTokenizer(tokenizer_folder(load)) for load in models.load]
    every = zip(models.load, configs, facts, tokenizers, strict=True)
    todo = [one for one in every if len(facts) == 1 or not _is_done(name, one[1], one[2])]
    if not todo:
        return
    wanted = dataclasses.replace(models, load=tuple(load for load, *_ in todo))
    by_scores = name == "chat" or getattr(config, "by", "") == "argmax"
    opened = language_models.open_scorers if by_scores else language_models.open_language_models
    with opened(wanted) as in_turn:
        for _, its_config, its_facts, tokenizer in todo:
            subject = language_models.Subject(next(in_turn), its_facts, tokenizer, command.cost)
            _EVALUATE[name](its_config, subject)
            del subject  # the next one needs the memory
            gc.collect()


def _config_of(config: Any, name: str, num_models: int) -> Any:
    """The configuration of one model: several have a folder each in ``output``."""
    if num_models == 1 or not config.output:
        return config
    return dataclasses.replace(config, output=str(Path(config.output) / name))


def _is_done(name: str, config: Any, facts: ModelFacts) -> bool:
    """Whether the folder of one of several models has its result, by the same command; an
    InputError where it holds something else.
    """
    if not config.output:
        return False
    file = Path(config.output) / f"{name}.json"
    if file.is_file():
        for found in load_results(file):
            is_its = found.model is not None and found.model.is_of(facts.record)
            if found.config == plain_values(config) and is_its:
                tell(f"{facts.name}: already evaluated, see {config.output}")
                return True
    check_output(config.output)
    return False
