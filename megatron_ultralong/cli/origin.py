"""Who set the values that a message names: a recipe or a file, where no flag did."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_ultralong.config import flags, recipes
from megatron_ultralong.program.errors import InputError, shown

_FOLDERS = ("load", "save", "data_path")
"""A message that names them has the path."""
_WORKED_OUT = {
    "context_parallel_size": "all ranks (--ranks, --gpus) over tensor and pipeline parallel sizes",
    "seq_length": "of the rows, or --seq-length",
    "global_batch_size": "rows over iterations, a multiple of the ranks'",
    "sequence_parallel": "on with tensor parallelism",
}
"""Where a recipe of any length has a value from that it does not set itself."""


@contextlib.contextmanager
def says_who_set(words: Sequence[str], start: Any) -> Iterator[None]:
    """Add to a message which of its fields a recipe or a file set, and no flag.

    ``num_attention_heads (4) must be divisible by tensor_model_parallel_size (8): ...; the recipe
    llama3.1-8b-1m sets tensor_model_parallel_size 8``.

    ``words`` are behind the verb; the flags among them change ``start``.

    Raises:
        InputError: as it was raised inside, with more text.
    """
    try:
        yield
    except InputError as error:
        typed, text, is_any = fields_typed(words), str(error), words[0] in recipes.EXTENSIONS
        found = [
            f"{name} {value if isinstance(value, str) else shown(value)}"
            + (f" ({_WORKED_OUT[name]})" if is_any and name in _WORKED_OUT else "")
            for name, value in _set_by(start).items()
            if name not in typed and name not in _FOLDERS and _names(text, name)
        ]
        if not found:
            raise
        who = words[1] if words[0] == "--config" else f"the recipe {words[0]}"
        told = ", ".join(found)
        if is_any:
            raise InputError(f"{error}; {who} works out {told}") from error
        raise InputError(f"{error}; {who} sets {told}") from error


def _names(text: str, field: str) -> bool:
    """Whether a message names a field: ``lr (3)``, ``seq_length``, ``--seq-length``, not "save"."""
    flag = re.escape("--" + field.replace("_", "-"))
    name = re.escape(field) + ("" if "_" in field else r"(?= [('])")
    return re.search(rf"(?<![\w-])(?:{flag}(?![\w-])|{name}(?!\w))", text) is not None


def fields_typed(words: Sequence[str]) -> frozenset[str]:
    """Fields that a command line has flags for: ``--seq-length=4 -> seq_length``."""
    typed = {flag[2:].replace("-", "_") for flag in flags.given_flags(words)}
    return frozenset(typed | {name.removeprefix("no_") for name in typed})


def with_shorter_warm_up(words: Sequence[str], config: Any, total: int) -> tuple[Any, str]:
    """``config``, whose warm-up is half of a run that is not longer than its recipe's.

    So a trial needs ``--train-iters`` or ``--train-tokens`` alone. A warm-up that was typed stays,
    and may be refused.

    ``total`` are iterations of its run; 0: not known.

    Returns:
        The configuration, and a line that says so; empty where nothing had to give way.
    """
    warm_up = config.optimizer.lr_warmup_iters
    if not 0 < total <= warm_up or "lr_warmup_iters" in fields_typed(words):
        return config, ""
    optimizer = dataclasses.replace(config.optimizer, lr_warmup_iters=total // 2)
    text = f"half of train_iters ({total}), where the recipe {words[0]} has {warm_up}"
    config = dataclasses.replace(config, optimizer=optimizer)
    return config, f"lr_warmup_iters is {total // 2}, {text}"


def _set_by(start: Any) -> dict[str, Any]:
    """What a recipe or a file has that is not its class's default, by the name of the field."""
    plain = type(start)()
    found: dict[str, Any] = {}
    for field in dataclasses.fields(start):
        value, default = getattr(start, field.name), getattr(plain, field.name)
        if dataclasses.is_dataclass(value):
            found |= _set_by(value)
        elif value != default:
            found[field.name] = value
    return found
