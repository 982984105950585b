"""What ``evaluate``'s verbs run: open the models that a command names, and ask them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from megatron_ultralong.data.rows.manifest import load_manifest
from megatron_ultralong.evaluation.chat import evaluate_chat
from megatron_ultralong.evaluation.choices import evaluate_choices
from megatron_ultralong.evaluation.local import local_benchmarks
from megatron_ultralong.evaluation.loss import evaluate_loss
from megatron_ultralong.evaluation.models import opening
from megatron_ultralong.evaluation.retrieval.grid import evaluate_grid, needle_grid, passkey_grid
from megatron_ultralong.evaluation.ruler.evaluation import evaluate_ruler
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import check_ranges


def run_loss(command: Any) -> None:
    """Loss by position of every model of a ``LossCommand``."""
    command.loss.check()
    separator_ids = load_manifest(command.loss.data_path).separator_ids
    models = command.models
    with opening.open_scorers(models) as scorers:
        records = [opening.model_facts(load, models.precision).record for load in models.load]
        evaluate_loss(command.loss, scorers, separator_ids, records)


def _evaluate(
    name: str, evaluate: Callable[..., Any], command: Any, *, is_scored: bool = False
) -> None:
    """A benchmark of one model, which scores rows or writes its answers.

    Args:
        name: of the field of ``command`` that has the benchmark's own options.
        evaluate: called with these and the model.
        command: the options, of :mod:`megatron_ultralong.evaluation.commands`.
        is_scored: it scores rows.

    Raises:
        InputError: an option is out of its range, or not one model is given.
    """
    config, models = getattr(command, name), command.models
    config.check()
    check_ranges(command.cost)
    if len(models.load) != 1:
        verb = f"evaluate {name.replace('_', '-')}"
        raise InputError(f"{verb} takes one --load, not {len(models.load)}")
    (load,) = models.load
    facts = opening.model_facts(load, models.precision)
    tokenizer = PromptTokenizer(opening.tokenizer_folder(load))
    opened: Any = opening.open_scorers if is_scored else opening.open_generators
    with opened(models) as (model,):
        evaluate(config, opening.Subject(model, facts, tokenizer, command.cost))


def _evaluate_retrieval(name: str, make_grid: Callable[..., Any], command: Any) -> None:
    """A grid of prompts put to one model, which scores them or writes the answers."""

    def evaluate(config: Any, subject: opening.Subject[Any]) -> None:
        tokenizer = subject.tokenizer
        grid = make_grid(config, lambda text: tokenizer.encode(text).tolist(), tokenizer.sha256)
        evaluate_grid(grid, subject)

    _evaluate(name, evaluate, command, is_scored=getattr(command, name).by == "argmax")


run_passkey = functools.partial(_evaluate_retrieval, "passkey", passkey_grid)
run_needle = functools.partial(_evaluate_retrieval, "needle", needle_grid)
run_ruler = functools.partial(_evaluate, "ruler", evaluate_ruler)
run_lv_eval = functools.partial(_evaluate, "lv_eval", local_benchmarks.evaluate_lv_eval)
run_infinitebench = functools.partial(
    _evaluate, "infinitebench", local_benchmarks.evaluate_infinitebench
)
run_choices = functools.partial(_evaluate, "choices", evaluate_choices, is_scored=True)
run_chat = functools.partial(_evaluate, "chat", evaluate_chat, is_scored=True)
