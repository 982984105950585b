"""Packages that only some verbs need: imported here alone, so that their lack has one message."""

import importlib
import importlib.util
from typing import Any

from megatron_ultralong.program.errors import InputError

REQUIREMENTS = {
    "transformers": "transformers>=4.45",
    "wonderwords": "wonderwords>=2.2",
    "jieba": "jieba>=0.42",
    "rouge": "rouge>=1.0",
    "rouge_score": "rouge-score>=0.1",
    "wandb": "wandb>=0.17",
    "gguf": "gguf>=0.19",
    "lm_eval": "lm_eval>=0.4.13",
    "datasets": "lm_eval>=0.4.13",
    "evaluate": "lm_eval>=0.4.13",
}
"""Module and requirement, as the extras of setup.py have them."""


def optional_package(name: str, what: str, otherwise: str = "") -> Any:
    """A module of such a package: ``optional_package("rouge_score.rouge_scorer", "ROUGE-Lsum")``.

    Args:
        name: of the module.
        what: what needs it, the message's first words.
        otherwise: what can be done without it: "leave --chat out".

    Raises:
        InputError: it is not installed.
    """
    check_optional_package(name, what, otherwise)
    return importlib.import_module(name)


def check_optional_package(name: str, what: str, otherwise: str = "") -> None:
    """Raise InputError, with the command that installs it, where a module is not there."""
    module = name.split(".")[0]
    requirement = REQUIREMENTS[module]
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f"{what}: this needs the package {requirement.partition('>=')[0]}, which is not "
            f"installed: pip install '{requirement}'{otherwise and f', or {otherwise}'}"
        )
