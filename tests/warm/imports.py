"""Imports what programs and tests import, so that processes forked from this one begin with it.

The forkserver of :mod:`tests.ranks` and :mod:`tests.warm.server` import it before they fork. What
it has made is out of the garbage collector's sight: a collection in a fork would visit all of it,
and copy every page that the fork shares with its server.
"""

import gc
import importlib
import sys

from megatron_ultralong.mcore.cpu import compile_at_first_call

MODULES = (
    "hypothesis.strategies",
    "megatron_ultralong.checkpoint.convert.report",
    "megatron_ultralong.checkpoint.convert.verbs",
    "megatron_ultralong.cli",
    "megatron_ultralong.data.prepare.documents",
    "megatron_ultralong.evaluation.models.language_models",
    "megatron_ultralong.evaluation.results.pictures",
    "megatron_ultralong.evaluation.ruler.evaluation",
    "megatron_ultralong.training.verbs",
    "numpy.ma",
    "pydantic.dataclasses",
    "pytest",
    "tests.ranks",
    "tests.training.conftest",
    "tests.training.job",
    "tests.warm.torchrun",
    "torch.distributed.run",
    "torch.profiler._cupti_monitor",
    "torch.utils.serialization.config",
    "transformers.models.llama.modeling_llama",
    "tyro",
)

with compile_at_first_call():  # as in a rank
    for module in MODULES:
        importlib.import_module(module)
gc.collect()
gc.freeze()
assert sys.modules["megatron_ultralong.training.loop"].is_frozen()  # every rank would count them
