"""What ``evaluate``'s verbs run: open the models that a command names, and ask them."""

import dataclasses
import functools
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.data.rows.manifest import load_manifest
from megatron_ultralong.evaluation.chat import evaluate_chat
from megatron_ultralong.evaluation.early_checks import check_names
from megatron_ultralong.evaluation.harness.command import evaluate_harness
from megatron_ultralong.evaluation.local import local_benchmarks
from megatron_ultralong.evaluation.local.graphwalks import evaluate_graphwalks
from megatron_ultralong.evaluation.local.longbench_v2 import evaluate_longbench_v2
from megatron_ultralong.evaluation.local.mrcr import evaluate_mrcr
from megatron_ultralong.evaluation.local.nolima import evaluate_nolima
from megatron_ultralong.evaluation.local.ruler2 import evaluate_ruler2
from megatron_ultralong.evaluation.loss import evaluate_loss
from megatron_ultralong.evaluation.models import opening
from megatron_ultralong.evaluation.models.facts import ModelFacts, model_facts, tokenizer_folder
from megatron_ultralong.evaluation.report.report import load_results
from megatron_ultralong.evaluation.results.result import plain_values
from megatron_ultralong.evaluation.retrieval.grid import evaluate_grid, needle_grid, passkey_grid
from megatron_ultralong.evaluation.ruler.evaluation import evaluate_ruler
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import check_ranges
from megatron_ultralong.program.output import check_output
from megatron_ultralong.program.required import check_required


def run_loss(command: Any) -> None:
    """Loss by position of every model of a ``LossCommand``."""
    command.loss.check()
    separator_ids = load_manifest(command.loss.data_path).separator_ids
    models = command.models
    with opening.open_scorers(models) as scorers:
        records = [model_facts(load, models.precision).record for load in models.load]
        evaluate_loss(command.loss, list(scorers), separator_ids, records)


def _evaluate(
    name: str,
    evaluate: Callable[..., Any],
    command: Any,
    *,
    opened: Callable[..., Any] = opening.open_language_models,
) -> None:
    """A benchmark of each model in turn.

    ``evaluate`` is called with the model and the benchmark's own options, which stand under
    ``name`` in the command.

    Raises:
        InputError: an option is out of its range, two models have one name, or an output folder
            holds something else.
    """
    config, models = getattr(command, name), command.models
    check_required(models)
    config.check()
    check_ranges(command.cost)
    facts = [model_facts(load, models.precision) for load in models.load]
    _check_folder_names([one.name for one in facts])
    configs = [_config_of(config, one.name, len(facts)) for one in facts]
    tokenizers = [PromptTokenizer(tokenizer_folder(load)) for load in models.load]
    every = zip(models.load, configs, facts, tokenizers, strict=True)
    todo = [one for one in every if len(facts) == 1 or not _is_done(name, one[1], one[2])]
    if not todo:
        return
    wanted = dataclasses.replace(models, load=tuple(load for load, *_ in todo))
    with opened(wanted) as in_turn:
        for _, its_config, its_facts, tokenizer in todo:
            subject = opening.Subject(next(in_turn), its_facts, tokenizer, command.cost)
            evaluate(its_config, subject)
            del subject  # the next one needs the memory
            gc.collect()


def _check_folder_names(names: Sequence[str]) -> None:
    """As :func:`check_names`, and each has to be the name of a folder."""
    if len(names) == 1:
        return
    check_names(names)
    for name in names:
        if Path(name).name != name:
            raise InputError(
                f"--load {name}=...: with several models the name is that of a folder in --output; "
                "leave out what is not allowed in a file's name"
            )


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
            if found.config == plain_values(config) and found.model == facts.record:
                tell(f"{facts.name}: already evaluated, see {config.output}")
                return True
    check_output(config.output)
    return False


def _evaluate_retrieval(name: str, make_grid: Callable[..., Any], command: Any) -> None:
    """A grid of prompts put to one model, which scores them or writes the answers."""

    def evaluate(config: Any, subject: opening.Subject[Any]) -> None:
        tokenizer = subject.tokenizer
        grid = make_grid(config, lambda text: tokenizer.encode(text).tolist(), tokenizer.sha256)
        evaluate_grid(grid, subject)

    by = getattr(command, name).by
    opened = opening.open_scorers if by == "argmax" else opening.open_language_models
    _evaluate(name, evaluate, command, opened=opened)


run_passkey = functools.partial(_evaluate_retrieval, "passkey", passkey_grid)
run_needle = functools.partial(_evaluate_retrieval, "needle", needle_grid)
run_ruler = functools.partial(_evaluate, "ruler", evaluate_ruler)
run_mrcr = functools.partial(_evaluate, "mrcr", evaluate_mrcr)
run_graphwalks = functools.partial(_evaluate, "graphwalks", evaluate_graphwalks)
run_ruler2 = functools.partial(_evaluate, "ruler2", evaluate_ruler2)
run_nolima = functools.partial(_evaluate, "nolima", evaluate_nolima)
run_longbench_v2 = functools.partial(_evaluate, "longbench_v2", evaluate_longbench_v2)
run_lv_eval = functools.partial(_evaluate, "lv_eval", local_benchmarks.evaluate_lv_eval)
run_infinitebench = functools.partial(
    _evaluate, "infinitebench", local_benchmarks.evaluate_infinitebench
)
run_chat = functools.partial(_evaluate, "chat", evaluate_chat, opened=opening.open_scorers)
run_harness = functools.partial(_evaluate, "harness", evaluate_harness)
