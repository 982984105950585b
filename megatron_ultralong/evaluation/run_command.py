"""What ``evaluate``'s verbs run: open the models that a command names, and ask them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_ultralong.data.rows.manifest import load_manifest
from megatron_ultralong.evaluation.commands import (
    ChatCommand,
    ChoicesCommand,
    InfiniteBenchCommand,
    LossCommand,
    LvEvalCommand,
    NeedleCommand,
    PasskeyCommand,
    RulerCommand,
)
from megatron_ultralong.evaluation.models.opening import (
    model_facts,
    open_generators,
    open_scorers,
    tokenizer_folder,
)
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError

OneModelCommand = (
    ChatCommand
    | ChoicesCommand
    | InfiniteBenchCommand
    | LvEvalCommand
    | NeedleCommand
    | PasskeyCommand
    | RulerCommand
)


def run_loss(command: LossCommand) -> None:
    """Loss by position of every model."""
    from megatron_ultralong.evaluation.loss import evaluate_loss

    command.loss.check()
    separator_ids = load_manifest(command.loss.data_path).separator_ids
    with open_scorers(command.models) as scorers:
        records = [
            model_facts(load, command.models.precision).record for load in command.models.load
        ]
        evaluate_loss(command.loss, scorers, separator_ids, records)


def run_passkey(command: PasskeyCommand) -> None:
    """Passkeys at every length and depth."""
    from megatron_ultralong.evaluation.retrieval.grid import passkey_grid

    _run_retrieval(command, "passkey", passkey_grid)


def run_needle(command: NeedleCommand) -> None:
    """Needles at every length and depth."""
    from megatron_ultralong.evaluation.retrieval.grid import needle_grid

    _run_retrieval(command, "needle", needle_grid)


def run_ruler(command: RulerCommand) -> None:
    """RULER's tasks."""
    from megatron_ultralong.evaluation.ruler.evaluation import evaluate_ruler

    _run_benchmark(command, "ruler", evaluate_ruler)


def run_lv_eval(command: LvEvalCommand) -> None:
    """LV-Eval's sets."""
    from megatron_ultralong.evaluation.local.local_benchmarks import evaluate_lv_eval

    _run_benchmark(command, "lv_eval", evaluate_lv_eval)


def run_infinitebench(command: InfiniteBenchCommand) -> None:
    """InfiniteBench's tasks."""
    from megatron_ultralong.evaluation.local.local_benchmarks import evaluate_infinitebench

    _run_benchmark(command, "infinitebench", evaluate_infinitebench)


def run_choices(command: ChoicesCommand) -> None:
    """Multiple-choice questions."""
    from megatron_ultralong.evaluation.choices.evaluation import evaluate_choices

    _run_benchmark(command, "choices", evaluate_choices, is_scored=True)


def run_chat(command: ChatCommand) -> None:
    """Held-out conversations."""
    from megatron_ultralong.evaluation.chat import evaluate_chat

    _run_benchmark(command, "chat", evaluate_chat, is_scored=True)


def _run_retrieval(
    command: PasskeyCommand | NeedleCommand, part: str, make_grid: Callable[..., Any]
) -> None:
    """A grid of prompts put to one model, which scores them or writes the answers."""
    from megatron_ultralong.evaluation.retrieval.grid import evaluate_grid

    def run_grid(config: Any, model: Any, facts: Any, tokenizer: Any, cost: Any) -> None:
        def encode(text: str) -> list[int]:
            ids: list[int] = tokenizer.encode(text).tolist()
            return ids

        evaluate_grid(make_grid(config, encode, tokenizer.sha256), model, facts, cost)

    is_scored = getattr(command, part).by == "argmax"
    _run_benchmark(command, part, run_grid, is_scored=is_scored)


def _run_benchmark(
    command: OneModelCommand, part: str, run: Callable[..., Any], *, is_scored: bool = False
) -> None:
    """A benchmark of one model, which scores rows or writes its answers.

    Args:
        command: the options.
        part: the field of them that is the benchmark's own.
        run: called with these, the model, what is known of it, its tokenizer, and the cost.
        is_scored: it scores rows.

    Raises:
        InputError: an option is out of its range, or not one model is given.
    """
    config = getattr(command, part)
    config.check()
    command.cost.check()
    if len(command.models.load) != 1:
        verb = f"evaluate {part.replace('_', '-')}"
        raise InputError(f"{verb} takes one --load, not {len(command.models.load)}")
    (load,) = command.models.load
    facts = model_facts(load, command.models.precision)
    tokenizer = PromptTokenizer(tokenizer_folder(load))
    opened: Any = open_scorers if is_scored else open_generators
    with opened(command.models) as (model,):
        run(config, model, facts, tokenizer, command.cost)
