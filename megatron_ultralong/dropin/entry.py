"""Megatron-LM's ``pretrain`` in each of its shapes, extended by ours, and an entry of our own.

Up to 0.17 it parses the arguments itself: ``pretrain(datasets, model_provider, type, step,
args_defaults=..., extra_args_provider=...)``. In 0.18 the script does, and hands over a container
of configurations: ``pretrain(container, datasets, model_provider, type, step)``. From 0.19 on the
container may describe the model too, and ``model_provider`` is a keyword. Which shape is there is
read off the signature.
"""

import argparse
import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from megatron_ultralong.dropin import checkpoints, cpu, extension
from megatron_ultralong.dropin.arguments import ASKED, add_ultralong_args, with_ultralong_args
from megatron_ultralong.dropin.extension import Extension
from megatron_ultralong.mcore.cpu import replaced
from megatron_ultralong.program.ending import ends_with_message
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.optional import check_megatron_lm

_MARK = "extended_by_ultralong"
Once = Callable[[], Extension]
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
        InputError: our arguments do not fit the model, the checkpoint or the rows, or there is no
            Megatron-LM.
    """
    check_megatron_lm()
    provider, defaults = with_ultralong_args(extra_args_provider), dict(args_defaults or {})
    script = {
        "train_valid_test_dataset_provider": train_valid_test_dataset_provider,
        "model_provider": model_provider,
        "model_type": model_type,
        "forward_step_func": forward_step_func,
        **others,
    }
    with cpu.training_on_cpu(), checkpoints.checkpoints_are_vetted():
        from megatron.training import pretrain as upstream

        if "extra_args_provider" in inspect.signature(upstream).parameters:
            extended(upstream)(**script, extra_args_provider=provider, args_defaults=defaults)
            return
        from megatron.training.argument_utils import pretrain_cfg_container_from_args
        from megatron.training.arguments import parse_and_validate_args

        args = parse_and_validate_args(extra_args_provider=provider, args_defaults=defaults)
        extended(upstream)(cfg_container=pretrain_cfg_container_from_args(args), **script)


def extended(upstream: Callable[..., None]) -> Callable[..., None]:
    """``megatron.training.pretrain`` itself, called as before; its run is extended by ours."""
    if hasattr(upstream, _MARK):
        return upstream
    signature = inspect.signature(upstream)

    @functools.wraps(upstream)
    def run(*arguments: Any, **keywords: Any) -> None:
        cpu.keep_compiled_helpers()
        once: Once = functools.cache(_extension)
        call = signature.bind(*arguments, **keywords).arguments
        call["train_valid_test_dataset_provider"] = _Datasets(
            once, call["train_valid_test_dataset_provider"]
        )
        call["forward_step_func"] = _forward_step(once, call["forward_step_func"])
        described = getattr(call.get("cfg_container"), "model", None)
        if described is not None:
            described.pre_wrap_hooks.append(lambda models: [once().apply(x) for x in models])
        else:
            call["model_provider"] = _model_provider(once, call["model_provider"])
        with (
            extension.ring_attention_in_layers(),
            extension.norms_under_sequence_parallelism(),
            checkpoints.checkpoints_are_vetted(),
            _checked_first(once),
        ):
            upstream(**call)

    setattr(run, _MARK, True)
    return run


def register_arguments() -> None:
    """Let every parser of Megatron-LM know our arguments, whatever script makes it."""
    from megatron.training import arguments

    upstream = arguments.add_megatron_arguments

    @functools.wraps(upstream)
    def add(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser = upstream(parser)
        ASKED.remember(parser)
        return add_ultralong_args(parser)

    arguments.add_megatron_arguments = add


def _extension() -> Extension:
    """The extension of this process's run, asked for when Megatron-LM's arguments are there."""
    from megatron.training import get_args

    args = get_args()
    found = Extension.of(args)
    found.identity.write(args.save)
    return found


@contextlib.contextmanager
def _checked_first(once: Once) -> Iterator[None]:
    """Check the arguments as soon as Megatron-LM has them, before it builds anything."""
    from megatron.training import training

    upstream = training.initialize_megatron

    @functools.wraps(upstream)
    def initialize(*arguments: Any, **keywords: Any) -> Any:
        result = upstream(*arguments, **keywords)
        once()
        return result

    with replaced((training, "initialize_megatron", initialize)):
        yield


class _Datasets:
    """A dataset provider that is ours where ``--ultralong-data-path`` is given."""

    def __init__(self, once: Once, upstream: Any) -> None:
        self._once = once
        self._upstream = upstream

    @property
    def is_distributed(self) -> bool:
        """Megatron-LM asks: whether every rank, or the first tensor-parallel one, makes data."""
        return self._is_ours or getattr(self._upstream, "is_distributed", False)

    @property
    def _is_ours(self) -> bool:
        return self._once().manifest is not None

    def __call__(self, num_samples: list[int], vp_stage: int | None = None) -> Any:
        if self._is_ours:
            from megatron_ultralong.dropin.rows import local_batches

            return local_batches(self._once(), num_samples)
        stage = {} if vp_stage is None else {"vp_stage": vp_stage}
        return self._upstream(num_samples, **stage)


def _model_provider(once: Once, upstream: Any) -> Callable[..., Any]:
    @functools.wraps(upstream)
    def build(*arguments: Any, **keywords: Any) -> Any:
        return once().apply(upstream(*arguments, **keywords))

    return build


def _forward_step(once: Once, upstream: Any) -> Callable[..., Any]:
    @functools.wraps(upstream)
    def step(*arguments: Any, **keywords: Any) -> Any:
        if once().manifest is None:
            return upstream(*arguments, **keywords)
        from megatron_ultralong.dropin.rows import forward_step

        return forward_step(*arguments, **keywords)

    return step


def pretrain_gpt() -> None:
    """Train as the command line says: Megatron-LM's arguments and ours; on a CPU without a GPU.

    Bad input ends with one message and exit status 2.
    """
    from megatron.core.enums import ModelType

    with ends_with_message():
        pretrain(_no_datasets, gpt_model_provider, ModelType.encoder_or_decoder, _no_step)


def gpt_model_provider(pre_process: bool = True, post_process: bool = True, **others: Any) -> Any:
    """The part of a GPT that this rank has, of the layers that ``--spec`` names.

    Args:
        pre_process: it begins with the embedding.
        post_process: it ends with the output layer.
        others: ``config``, ``vp_stage``, ``pg_collection``, as releases of Megatron-LM give them.
    """
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.spec_utils import import_module
    from megatron.training import get_args
    from megatron.training.arguments import core_transformer_config_from_args

    args = get_args()
    if not args.spec:
        raise InputError(
            "which layers is not said: add --spec megatron_ultralong.spec ring_te_spec (layers of "
            "Transformer Engine) or ring_local_spec (with --transformer-impl local)"
        )
    config = others.pop("config", None) or core_transformer_config_from_args(args)
    known = inspect.signature(GPTModel).parameters
    return GPTModel(
        config=config,
        transformer_layer_spec=import_module(args.spec),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        fp16_lm_cross_entropy=args.fp16_lm_cross_entropy,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
        **{name: value for name, value in others.items() if name in known},
    )


def _no_datasets(*_: Any, **__: Any) -> Any:
    raise InputError(
        "this entry trains on rows of `ultralong prepare`: add --ultralong-data-path FOLDER; your "
        "own script keeps its own data (docs/dropin.md)"
    )


def _no_step(*_: Any, **__: Any) -> Any:
    raise AssertionError("without rows no step is taken")
