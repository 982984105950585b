"""What ``evaluate``'s verbs run: open the models that a command names, and ask them."""

import dataclasses
import functools
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.data.rows.manifest import FILE_NAME as MANIFEST_FILE
from megatron_ultralong.data.rows.manifest import load_manifest
from megatron_ultralong.evaluation import chat, commands, loss
from megatron_ultralong.evaluation.early_checks import outputs
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
from megatron_ultralong.evaluation.options import CostConfig, LossConfig, ModelsConfig
from megatron_ultralong.evaluation.results import finished
from megatron_ultralong.evaluation.results.file import file_sha256, is_finished
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.evaluation.retrieval.grid import evaluate_grid, needle_grid, passkey_grid
from megatron_ultralong.evaluation.ruler.evaluation import evaluate_ruler
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program import rank_values
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.ranks import is_main_rank


def _retrieval(
    make_grid: Callable[..., Any], config: Any, subject: language_models.Subject[Any]
) -> Result:
    """A grid of prompts put to one model, which scores them or writes the answers."""
    tokenizer = subject.tokenizer
    grid = make_grid(config, lambda text: tokenizer.encode(text).tolist(), tokenizer.sha256)
    return evaluate_grid(grid, subject)


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
        _run_loss(config, models, facts)
        return
    configs = [config] * len(facts)
    if config.output:
        folders = outputs(name, config, [one.name for one in facts])
        configs = [dataclasses.replace(config, output=folder) for folder in folders]
    tokenizers = [PromptTokenizer(tokenizer_folder(load)) for load in models.load]
    by_scores = name == "chat" or getattr(config, "by", "") == "argmax"
    writer = language_models.MegatronLanguageModel
    of_megatron = language_models.MegatronScorer if by_scores else writer
    with language_models.model_loaders(of_megatron, models) as loaders:
        every = list(zip(loaders, configs, facts, tokenizers, strict=True))
        # All that are there are compared before any model is asked for hours.
        todo = [one for one in every if not _is_done(name, *one[1:], command.cost)]
        for load, its_config, its_facts, tokenizer in todo:
            subject = language_models.Subject(load(), its_facts, tokenizer, command.cost)
            _EVALUATE[name](its_config, subject)
            del subject  # the next one needs the memory
            gc.collect()


def _run_loss(config: LossConfig, models: ModelsConfig, facts: Sequence[ModelFacts]) -> None:
    """One table of all models; nothing where it is there."""
    manifest = Path(config.data_path) / MANIFEST_FILE

    def is_done() -> bool:
        if not (config.output and is_finished(config.output)):
            return False
        material = {manifest.name: file_sha256(manifest)}
        identities = [one.identity for one in facts]
        finished.check_loss(Path(config.output), config, identities, material)
        _tell_done(", ".join(one.name for one in facts), config.output)
        return True

    separator_ids = load_manifest(config.data_path).separator_ids
    with language_models.open_scorers(models) as scorers:
        if not rank_values.from_main_rank(is_done, is_main=is_main_rank()):
            loss.evaluate_loss(config, list(scorers), separator_ids, [one.record for one in facts])


def _is_done(
    name: str, config: Any, facts: ModelFacts, tokenizer: PromptTokenizer, cost: CostConfig
) -> bool:
    """Whether a model's folder has its result, by a command that asked the same.

    Every rank calls it; the main one compares. The benchmark runs on the answers that are there.

    Raises:
        InputError: on every rank, where another command wrote it.
    """

    def compare() -> bool:
        if not (config.output and is_finished(config.output)):
            return False
        evaluation = finished.FinishedEvaluation(config.output, name, config)
        known = (facts.name, facts.max_positions, facts.model.vocab_size)
        model: Any = language_models.UnloadedModel(*known)
        subject = language_models.Subject(model, facts, tokenizer, cost, evaluation)
        evaluation.check_result(_EVALUATE[name](config, subject))
        _tell_done(facts.name, config.output)
        return True

    return rank_values.from_main_rank(compare, is_main=is_main_rank())


def _tell_done(names: str, output: str) -> None:
    tell(f"{names}: already evaluated, see {output}")
