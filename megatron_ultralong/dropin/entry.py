"""``megatron.training.pretrain`` in each of its shapes, with our arguments, rotary and data.

Up to 0.17 it parses the arguments itself: ``pretrain(datasets, model_provider, type, step,
args_defaults=..., extra_args_provider=...)``. In 0.18 the script does, and hands over a container
of configurations: ``pretrain(container, datasets, model_provider, type, step)``. From 0.19 on the
container may describe the model too, and ``model_provider`` is a keyword. Which shape is there is
read off the signature.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from megatron_ultralong.dropin.arguments import ASKED, add_ultralong_args, with_ultralong_args
from megatron_ultralong.dropin.attention import ring_attention_in_layers
from megatron_ultralong.dropin.checkpoints import checkpoints_are_vetted
from megatron_ultralong.dropin.cpu import keep_compiled_helpers, training_on_cpu
from megatron_ultralong.dropin.extension import Extension, norms_under_sequence_parallelism
from megatron_ultralong.mcore.cpu import replaced

_MARK = "extended_by_ultralong"
ArgsProvider = Callable[[argparse.ArgumentParser], argparse.ArgumentParser]


def pretrain(
    train_valid_test_dataset_provider: Any,
    model_provider: Any,
    model_type: Any,
    forward_step_func: Any,
    *,
    extra_args_provider: ArgsProvider | None = None,
    args_defaults: Mapping[str, Any] | None = None,
    **others: Any,
) -> None:
    """Megatron-LM's ``pretrain`` with our arguments, called as up to 0.17 whatever is installed.

    Without a GPU it runs on the CPU, over gloo.

    Args:
        train_valid_test_dataset_provider: the script's own, used without ``--ultralong-data-path``.
        model_provider: the script's own; the model it builds is given our rotary embedding.
        model_type: as Megatron-LM has it.
        forward_step_func: the script's own, used without ``--ultralong-data-path``.
        extra_args_provider: adds the script's own arguments.
        args_defaults: the script's own defaults.
        others: keywords of ``megatron.training.pretrain``.

    Raises:
        InputError: our arguments do not fit the model, the checkpoint or the rows.
    """
    with training_on_cpu(), checkpoints_are_vetted():
        _pretrain(
            (train_valid_test_dataset_provider, model_provider, model_type, forward_step_func),
            with_ultralong_args(extra_args_provider),
            dict(args_defaults or {}),
            others,
        )


def _pretrain(
    script: tuple[Any, Any, Any, Any],
    provider: ArgsProvider,
    defaults: dict[str, Any],
    others: dict[str, Any],
) -> None:
    from megatron.training import pretrain as theirs

    run = extended(theirs)
    if "extra_args_provider" in inspect.signature(theirs).parameters:
        run(*script, extra_args_provider=provider, args_defaults=defaults, **others)
        return
    from megatron.training.argument_utils import pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args

    args = parse_and_validate_args(extra_args_provider=provider, args_defaults=defaults)
    datasets, model_provider, model_type, step = script
    run(
        cfg_container=pretrain_cfg_container_from_args(args),
        train_valid_test_dataset_provider=datasets,
        model_provider=model_provider,
        model_type=model_type,
        forward_step_func=step,
        **others,
    )


def extended(theirs: Callable[..., None]) -> Callable[..., None]:
    """``megatron.training.pretrain`` itself, called as before; its run is extended by ours."""
    if hasattr(theirs, _MARK):
        return theirs
    signature = inspect.signature(theirs)

    @functools.wraps(theirs)
    def run(*arguments: Any, **keywords: Any) -> None:
        keep_compiled_helpers()
        once = _Once()
        call = signature.bind(*arguments, **keywords).arguments
        call["train_valid_test_dataset_provider"] = _Datasets(
            once, call["train_valid_test_dataset_provider"]
        )
        call["forward_step_func"] = _forward_step(once, call["forward_step_func"])
        described = getattr(call.get("cfg_container"), "model", None)
        if described is not None:
            described.pre_wrap_hooks.append(lambda models: once().apply_to_all(models))
        else:
            call["model_provider"] = _model_provider(once, call["model_provider"])
        with (
            ring_attention_in_layers(),
            norms_under_sequence_parallelism(),
            checkpoints_are_vetted(),
            _checked_first(once),
        ):
            theirs(**call)

    setattr(run, _MARK, True)
    return run


def register_arguments() -> None:
    """Let every parser of Megatron-LM know our arguments, whatever script makes it."""
    from megatron.training import arguments

    theirs = arguments.add_megatron_arguments

    @functools.wraps(theirs)
    def add(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser = theirs(parser)
        ASKED.remember(parser)
        return add_ultralong_args(parser)

    arguments.add_megatron_arguments = add


class _Once:
    """The extension of this process's run; made when Megatron-LM's arguments are there."""

    def __init__(self) -> None:
        self._extension: Extension | None = None

    def __call__(self) -> Extension:
        if self._extension is None:
            from megatron.training import get_args

            args = get_args()
            self._extension = Extension.of(args)
            self._extension.identity.write(args.save)
        return self._extension


@contextlib.contextmanager
def _checked_first(once: _Once) -> Iterator[None]:
    """Check the arguments as soon as Megatron-LM has them, before it builds anything."""
    from megatron.training import training

    theirs = training.initialize_megatron

    @functools.wraps(theirs)
    def initialize(*arguments: Any, **keywords: Any) -> Any:
        result = theirs(*arguments, **keywords)
        once()
        return result

    with replaced((training, "initialize_megatron", initialize)):
        yield


class _Datasets:
    """A dataset provider that is ours where ``--ultralong-data-path`` is given."""

    def __init__(self, once: _Once, theirs: Any) -> None:
        self._once = once
        self._theirs = theirs

    @property
    def is_distributed(self) -> bool:
        """Megatron-LM asks: whether every rank, or the first tensor-parallel one, makes data."""
        return self._is_ours or getattr(self._theirs, "is_distributed", False)

    @property
    def _is_ours(self) -> bool:
        return self._once().manifest is not None

    def __call__(self, num_samples: list[int], vp_stage: int | None = None) -> Any:
        if self._is_ours:
            from megatron_ultralong.dropin.rows import local_batches

            return local_batches(self._once(), num_samples)
        stage = {} if vp_stage is None else {"vp_stage": vp_stage}
        return self._theirs(num_samples, **stage)


def _model_provider(once: _Once, theirs: Any) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def build(*arguments: Any, **keywords: Any) -> Any:
        model = theirs(*arguments, **keywords)
        once().apply(model)
        return model

    return build


def _forward_step(once: _Once, theirs: Any) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def step(*arguments: Any, **keywords: Any) -> Any:
        if once().manifest is None:
            return theirs(*arguments, **keywords)
        from megatron_ultralong.dropin.rows import forward_step

        return forward_step(*arguments, **keywords)

    return step
