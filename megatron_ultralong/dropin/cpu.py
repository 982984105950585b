"""Megatron-LM's training loop where there is no GPU: over gloo, without Triton, without a compiler.

Megatron-LM's ``pretrain`` refuses to start without CUDA. Where there is none,
:func:`training_on_cpu` adds to :func:`~megatron_ultralong.mcore.cpu.cpu_backend`, in this process
and until it is left:

* ``initialize_megatron`` is called with its own ``allow_no_cuda``; one device is counted, so that
  the process groups are made, and setting it does nothing.
* Streams are ``torch.cpu``'s, which do nothing: a CPU has no queue.
* Compiling warm-ups and CUDA extensions are left out: fused kernels are for GPUs. Triton, which
  PyTorch's builds for CPUs have not, is not missed (:func:`import_kernels_without_triton`).
* Pinning memory does nothing: it is for copies to a GPU.
* The process that Megatron-Core spawns to collect what its writers say does not import the script:
  it needs nothing of it, and it is outside this context.

:func:`set_cpu_defaults` changes the defaults of arguments that ask for NCCL, Transformer Engine
and fused kernels; what a command line says still counts.

Before 0.17 ``megatron.training`` cannot be imported without Triton, for kernels of one module that
run on GPUs alone. PyTorch's builds for CPUs bring none.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.util
import multiprocessing.spawn
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.mcore.cpu import cpu_backend, do_nothing, needs_cpu_backend, replaced


def keep_compiled_helpers() -> None:
    """Do not let Megatron-LM compile its index builder where it has been compiled.

    At its start it runs ``make`` in ``megatron/core/datasets`` and ends the program if that fails:
    in a wheel, which has the result and no Makefile, and in a source tree where ``pybind11`` is not
    installed for the ``python3`` of the path.
    """
    from megatron.core.datasets import utils

    compiled = importlib.util.find_spec("megatron.core.datasets.helpers_cpp")
    if compiled is None or compiled.origin is None:
        return
    source = Path(str(utils.__file__)).parent / "helpers.cpp"
    is_stale = source.is_file() and source.stat().st_mtime > Path(compiled.origin).stat().st_mtime
    if not is_stale:
        utils.compile_helpers = do_nothing


_KERNELS = "megatron.core.transformer.custom_layers.batch_invariant_kernels"


def import_kernels_without_triton() -> None:
    """Import that module; its kernels raise where they are called.

    While it is imported, and by nothing else, ``triton`` is a stand-in: elsewhere Megatron-Core and
    torch ask whether there is a Triton, and have to hear that there is none.
    """
    try:
        importlib.import_module(_KERNELS)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            return  # not in this release, or something else is missing: whoever needs it says so
        triton, language = types.ModuleType("triton"), types.ModuleType("triton.language")
        vars(triton).update(jit=_jit, language=language)
        vars(language).update(constexpr=object)
        stand_ins = {"triton": triton, "triton.language": language}
        sys.modules.update(stand_ins)
        try:
            importlib.import_module(_KERNELS)
        finally:
            for name in stand_ins:
                del sys.modules[name]


def _jit(kernel: Callable[..., Any] | None = None, **_: Any) -> Any:
    """In the place of ``triton.jit``, with and without options."""
    if kernel is None:
        return _jit

    def missing(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{kernel.__name__} is a Triton kernel, and Triton is not installed")

    return missing


_DEFAULTS = {
    "distributed_backend": "gloo",
    "transformer_impl": "local",
    "apply_rope_fusion": False,
    "bias_dropout_fusion": False,
    "bias_gelu_fusion": False,
    "bias_swiglu_fusion": False,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "no_persist_layer_norm": True,
}
"""Of Megatron-LM's arguments, where there is no CUDA."""


def set_cpu_defaults(parser: argparse.ArgumentParser) -> None:
    """Let Megatron-LM's parser ask for nothing that a CPU lacks; with CUDA, leave it as it is."""
    if needs_cpu_backend():
        known = {action.dest for action in parser._actions}
        parser.set_defaults(**{name: _DEFAULTS[name] for name in _DEFAULTS if name in known})


_PREPARATION = multiprocessing.spawn.get_preparation_data


def _without_the_script(name: str) -> dict[str, Any]:
    data: dict[str, Any] = _PREPARATION(name)
    data.pop("init_main_from_path", None)
    return data


@contextlib.contextmanager
def training_on_cpu() -> Iterator[None]:
    """Run Megatron-LM on the CPU inside this context.

    Where there is CUDA, and inside another such context, it does nothing.
    """
    if not needs_cpu_backend() or torch.cuda.set_device is do_nothing:
        yield
        return
    import_kernels_without_triton()
    from megatron.training import arguments, initialize, training

    replacements = (
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "set_device", do_nothing),
        (torch.cuda, "Stream", torch.cpu.Stream),
        (torch.cuda, "stream", torch.cpu.stream),
        (torch.Tensor, "pin_memory", lambda tensor, *_, **__: tensor),
        (multiprocessing.spawn, "get_preparation_data", _without_the_script),
        (training, "set_jit_fusion_options", do_nothing),
        # Before 0.17 it compiles them with CUDA's compiler at every start.
        (initialize, "fused_kernels", types.SimpleNamespace(load=do_nothing)),
        (arguments, "get_device_arch_version", lambda: 10),
        (
            training,
            "initialize_megatron",
            functools.partial(training.initialize_megatron, allow_no_cuda=True),
        ),
    )
    in_this_release = [each for each in replacements if hasattr(each[0], each[1])]
    with cpu_backend(), replaced(*in_this_release):
        yield
