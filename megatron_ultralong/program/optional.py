"""Packages that only some verbs need: imported here alone, so that their lack has one message."""

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import site
import sys
import sysconfig
from pathlib import Path
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

HARNESS = Path(sys.prefix) / "harness"
"""What ``make harness`` makes beside this environment: another one that has lm_eval too."""


def optional_package(name: str, what: str, otherwise: str = "") -> Any:
    """A module of such a package: ``optional_package("rouge_score.rouge_scorer", "ROUGE-Lsum")``.

    A message begins with ``what`` needs it; ``otherwise`` is what can be done without: "leave
    --chat out".

    Raises:
        InputError: it is not installed.
    """
    check_optional_package(name, what, otherwise)
    return importlib.import_module(name)


def check_optional_package(name: str, what: str, otherwise: str = "") -> None:
    """Raise InputError, with the command that installs it, where a module is not there."""
    module = name.split(".")[0]
    requirement = REQUIREMENTS[module]
    if importlib.util.find_spec(module) is not None:
        return
    package, way = requirement.partition(">=")[0], f"pip install '{requirement}'"
    if package == "lm_eval":
        if _add_harness(module):
            return
        way = f"`make harness` in the clone, or {way}"
    raise InputError(
        f"{what}: this needs the package {package}, which is not installed: {way}"
        f"{otherwise and f', or {otherwise}'}"
    )


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, None if it is not installed.

    That of lm_eval may be the one of ``make harness``, whether it is importable yet or not.
    """
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        if distribution != "lm_eval" or (packages := _of_harness()) is None:
            return None
    found = importlib.metadata.distributions(name=distribution, path=[packages])
    return next((one.version for one in found), None)


def _of_harness() -> str | None:
    """The folder of the packages of ``make harness``, None if it has not been run to its end."""
    if not (HARNESS / "installed").is_file():
        return None
    return sysconfig.get_path("purelib", "posix_prefix", vars={"base": str(HARNESS)})


def _add_harness(module: str) -> bool:
    """Whether the environment of ``make harness`` has a module; then all of it is importable.

    Its packages come behind those of this environment, as its own ``parent.pth`` has it.
    """
    packages = _of_harness()
    if not packages or importlib.machinery.PathFinder.find_spec(module, [packages]) is None:
        return False
    site.addsitedir(packages)
    importlib.invalidate_caches()
    return True


def check_megatron_lm() -> None:
    """Raise InputError where Megatron-Core comes without Megatron-LM, as wheels up to 0.16 do."""
    if importlib.util.find_spec("megatron.training") is None:
        raise InputError(
            "megatron.training is not in this environment, whose Megatron-Core comes without "
            "Megatron-LM: put the folder of your Megatron-LM first on PYTHONPATH, or take a "
            "megatron-core of 0.17 to 0.19 (Python 3.12 or newer): pip install -e '.[megatron-lm]' "
            "in a clone of this project; docs/dropin.md has more"
        )
