"""Refuse, by name and before anything is built, what a run's arguments ask of us in vain."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from typing import Any

from megatron_ultralong.dropin.asked import ASKED
from megatron_ultralong.dropin.config import DropInConfig
from megatron_ultralong.dropin.known_arguments import KNOWN
from megatron_ultralong.dropin.rules import RULES, Part, Rule
from megatron_ultralong.mcore.core_attention import CP_COMM_TYPES
from megatron_ultralong.program.errors import InputError

_NEW = (
    "this version of megatron_ultralong does not know it, and cannot say whether its attention, "
    "rotary embedding or rows would have to honour it; leave it out, or, where you know that it "
    "concerns other parts of the model, pass --ultralong-accept {name}"
)


def parts(config: DropInConfig, args: Any) -> tuple[Part, ...]:
    """The parts of ours that a run uses.

    The rotary embedding is one wherever the arguments describe one that is ours too; what it
    computes is the same, in float64, and for the positions of this rank alone.
    """
    scales = config.rope_scaling not in ("keep", "none") or config.angle_precision != "exact"
    used: dict[Part, bool] = {
        "attention": True,
        "reset mask": bool(args.reset_attention_mask) and not config.data_path,
        "rotary": scales
        or bool(config.data_path)
        or config.recompute_granularity != "none"
        or all(_honours(rule, args) for rule in RULES["rotary"]),
        "rows": bool(config.data_path),
        "recomputation": config.recompute_granularity != "none",
        "loss tiles": bool(config.loss_tile_size),
    }
    return tuple(part for part, is_used in used.items() if is_used)


def check_arguments(config: DropInConfig, args: Any, used: Iterable[Part]) -> None:
    """Check Megatron-LM's arguments against the table.

    Args:
        config: our own.
        args: Megatron-LM's, validated by it.
        used: parts of ours that the run uses.

    Raises:
        InputError: one asks for what such a part does not do, or is not known.
    """
    used = list(used)
    for rule in (rule for part in used for rule in RULES[part]):
        _apply(rule, args, rule.name)
    if args.context_parallel_size > 1:
        for kind in args.cp_comm_type if isinstance(args.cp_comm_type, list) else ():
            if kind not in CP_COMM_TYPES:
                raise InputError(
                    f"--cp-comm-type is {kind}, and our attention exchanges keys and values by p2p "
                    "(a ring) or all_gather: pass one of them"
                )
    if "reset mask" in used and "recomputation" in used and args.micro_batch_size > 1:
        raise InputError(
            f"--reset-attention-mask with --ultralong-recompute-granularity needs "
            f"--micro-batch-size 1, not {args.micro_batch_size}: the documents differ from row to "
            "row; raise --global-batch-size instead"
        )
    for name in sorted(ASKED.given() - KNOWN - config.accepted):
        raise InputError(f"{ASKED.flag(name)} is new: {_NEW.format(name=name)}")


def check_model_config(config: DropInConfig, model_config: Any, used: Iterable[Part]) -> None:
    """Check the configuration that a model was built from, wherever its values are from.

    Raises:
        InputError: as :func:`check_arguments`.
    """
    for rule in (rule for part in used for rule in RULES[part]):
        _apply(rule, model_config, f"{type(model_config).__name__}.{rule.name}")
    for field in dataclasses.fields(model_config):
        if field.name in KNOWN or field.name in config.accepted:
            continue
        value = getattr(model_config, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value != default:
            raise InputError(
                f"{type(model_config).__name__}.{field.name} is {value!r} (by default "
                f"{default!r}) and new: {_NEW.format(name=field.name)}"
            )


def _honours(rule: Rule, values: Any) -> bool:
    """Whether arguments, or a configuration, ask for what a rule accepts, or have it not."""
    value = getattr(values, rule.name, rule.accepted[0])
    if isinstance(value, enum.Enum):
        value = value.name
    return (tuple(value) if isinstance(value, list) else value) in rule.accepted


def _apply(rule: Rule, values: Any, where: str) -> None:
    if _honours(rule, values):
        return
    name = ASKED.flag(rule.name)
    raise InputError(
        f"{name if name != rule.name else where} is {getattr(values, rule.name)!r}, and "
        f"{rule.reason}: {rule.way_out or 'leave it out'}"
    )
