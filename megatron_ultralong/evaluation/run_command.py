"""What ``evaluate``'s verbs run: open the models that a command names, and ask them."""

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Callable, Mapping
from typing import Any

from megatron_ultralong.data.rows.manifest import load_manifest
from megatron_ultralong.evaluation import chat, commands, finished, loss
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
from megatron_ultralong.evaluation.models.facts import model_facts, tokenizer_folder
from megatron_ultralong.evaluation.retrieval.grid import evaluate_grid, needle_grid, passkey_grid
from megatron_ultralong.evaluation.ruler.evaluation import evaluate_ruler
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.mcore.parallel import joined_ranks
from megatron_ultralong.program import rank_values
from megatron_ultralong.program.ranks import is_main_rank, world_size


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
    with contextlib.ExitStack() as stack:
        if world_size() > 1:
            stack.enter_context(joined_ranks(command.models.parallel))
        # Others may see other files: folders of their own machine, or a server's of a while ago.
        left, asked = rank_values.from_main_rank(lambda: _left(command), is_main=is_main_rank())
        finished.tell_finished(command, left)
        if left:
            _evaluate(command, left, asked)


def _left(command: Any) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """The models that are to be evaluated, and what their results state of the question."""
    _, config = commands.benchmark_of(command)
    left = finished.unfinished(command)
    return left, finished.asked(command) if left and config.output else {}


def _is_finished(command: Any) -> bool:
    """Whether the same command has finished meanwhile, which is said."""
    left = finished.unfinished(command)
    finished.tell_finished(command, left)
    return not left


def _evaluate(command: Any, left: tuple[str, ...], asked: Mapping[str, Any]) -> None:
    """Ask the models ``left``, each of which is one of ``--load``."""
    (name, config), models = commands.benchmark_of(command), command.models
    facts = [model_facts(load, models.precision) for load in left]
    questions = [asked.get(one.name, {}) for one in facts]
    if name == "loss":
        separator_ids = load_manifest(config.data_path).separator_ids
        records = [one.record for one in facts]
        with language_models.open_scorers(models) as scorers:
            about = (separator_ids, records, questions, functools.partial(_is_finished, command))
            loss.evaluate_loss(config, list(scorers), *about)
        return
    configs = [_config_of(config, one.name, len(models.load)) for one in facts]
    tokenizers = [PromptTokenizer(tokenizer_folder(load)) for load in left]
    wanted = dataclasses.replace(models, load=left)
    by_scores = name == "chat" or getattr(config, "by", "") == "argmax"
    opened = language_models.open_scorers if by_scores else language_models.open_language_models
    with opened(wanted) as in_turn:
        for its_config, its_facts, tokenizer, question in zip(
            *(configs, facts, tokenizers, questions), strict=True
        ):
            subject = language_models.Subject(
                *(next(in_turn), its_facts, tokenizer, command.cost, question)
            )
            _EVALUATE[name](its_config, subject)
            del subject  # the next one needs the memory
            gc.collect()


def _config_of(config: Any, name: str, num_models: int) -> Any:
    """The configuration of one model, with its own folder."""
    if not config.output:
        return config
    folder = finished.folder_of(config.output, name, num_models)
    return dataclasses.replace(config, output=folder)
