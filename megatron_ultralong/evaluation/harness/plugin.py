"""``ultralong-lm-eval``: the harness's own command ``lm_eval``, which knows ``--model ultralong``.

The harness looks for no models of other packages, so somebody has to name this one before its
command line is read. ``--model_args`` are ``load``, the fields of
:class:`~megatron_ultralong.config.parallel.ParallelConfig`, and some of :class:`HarnessConfig`.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.plain_values import Config, from_dict
from megatron_ultralong.evaluation.harness.command import harness_model
from megatron_ultralong.evaluation.harness.offline import WHAT
from megatron_ultralong.evaluation.models import language_models
from megatron_ultralong.evaluation.models.facts import model_facts, tokenizer_folder
from megatron_ultralong.evaluation.options import CostConfig, HarnessConfig, ModelsConfig
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.ending import ends_with_message
from megatron_ultralong.program.errors import InputError, not_known
from megatron_ultralong.program.names import whole_names, with_home
from megatron_ultralong.program.optional import optional_package

_OF_MODELS = ("precision", "verify_checksums")
_OF_HARNESS = ("max_length", "beyond_trained_positions", "output")
_LAYOUT = tuple(field.name for field in dataclasses.fields(ParallelConfig))


class Plugin:
    """What the harness makes its model by; ranks but the main one end here when all is done."""

    opened: ClassVar[contextlib.ExitStack] = contextlib.ExitStack()
    """Model and journal, which :func:`main` closes: the harness tells no model that it is done."""

    @classmethod
    def create_from_arg_string(cls, text: str, more: Mapping[str, Any] | None = None) -> Any:
        """The model of ``--model_args load=run,tensor_model_parallel_size=2``."""
        values = optional_package("lm_eval.utils", WHAT).simple_parse_args_string(text)
        return cls.create_from_arg_obj(values, more)

    @classmethod
    def create_from_arg_obj(
        cls, values: Mapping[str, Any], more: Mapping[str, Any] | None = None
    ) -> Any:
        """The same, of parsed arguments; ``more`` has the batch size.

        Raises:
            InputError: an argument that is not known or out of its range, or a checkpoint that
                cannot be opened.
        """
        known = ("load", *_OF_MODELS, *_OF_HARNESS, *_LAYOUT)
        for name in values:
            if name not in known:
                raise InputError(not_known("argument of --model_args", name, known))

        def of(config_class: type[Config], names: tuple[str, ...], **others: Any) -> Config:
            given = {name: values[name] for name in names if name in values}
            return from_dict(config_class, {**others, **given}, "--model_args")

        load = with_home(str(values.get("load", "")))
        batch_size = (more or {}).get("batch_size") or 1
        models = of(ModelsConfig, _OF_MODELS, load=[load] if load else [])
        models = dataclasses.replace(models, parallel=of(ParallelConfig, _LAYOUT))
        if not (str(batch_size).isascii() and str(batch_size).isdecimal()):
            raise InputError(f"--batch_size must be a number of rows, not {batch_size}: give one")
        options: dict[str, Any] = {"tasks": ["-"], "micro_batch_size": int(batch_size)}
        config = of(HarnessConfig, _OF_HARNESS, **options)
        config.check()
        stack = cls.opened
        in_turn = stack.enter_context(language_models.open_language_models(models))
        facts = model_facts(load, models.precision)
        tokenizer = PromptTokenizer(tokenizer_folder(load))
        subject = language_models.Subject(next(in_turn), facts, tokenizer, CostConfig())
        opened = stack.enter_context(harness_model(config, subject))
        if opened is None:
            stack.close()
            sys.exit(0)
        return opened[0]


_NAMES = ("--tasks", "--model-args", "--include-path", "--output-path", "--use-cache")
"""Flags whose values name something: an empty one is all files here, or nothing is written."""


def main() -> None:
    """Run ``lm_eval`` with the words of the command line, none of whose names is empty."""
    with ends_with_message(), Plugin.opened:  # closed with the error, if there is one
        sys.argv[1:] = whole_names(sys.argv[1:], _NAMES.__contains__)
        registry = optional_package("lm_eval.api.registry", WHAT)
        registry.model_registry.register("ultralong", target=f"{Plugin.__module__}:Plugin")
        optional_package("lm_eval.__main__", WHAT).cli_evaluate()


if __name__ == "__main__":
    from megatron_ultralong.evaluation.harness import plugin

    plugin.main()  # by its own name, which the registry has
