"""Megatron-LM's training loop on a CPU over gloo: what it asks of CUDA beyond Megatron-Core.

Megatron-LM's ``pretrain`` refuses to start without CUDA. Where there is none,
:func:`training_on_cpu` adds to :func:`~megatron_ultralong.mcore.cpu.cpu_backend`, in this process
and until it is left:

* ``initialize_megatron`` is called with its own ``allow_no_cuda``; one device is counted, so that
  the process groups are made, and setting it does nothing.
* Streams are ``torch.cpu``'s, which do nothing: a CPU has no queue.
* Compiling warm-ups and CUDA extensions are left out: fused kernels are for GPUs. Triton, which
  PyTorch's builds for CPUs have not, is not missed (:mod:`.without_triton`).
* Pinning memory does nothing: it is for copies to a GPU.
* The process that Megatron-Core spawns to collect what its writers say does not import the script:
  it needs nothing of it, and it is outside this context.

:func:`set_cpu_defaults` changes the defaults of arguments that ask for NCCL, Transformer Engine
and fused kernels; what a command line says still counts.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing.spawn
from collections.abc import Iterator
from typing import Any

import torch

from megatron_ultralong.dropin.without_triton import import_kernels_without_triton
from megatron_ultralong.mcore.cpu import cpu_backend, needs_cpu_backend

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


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


_PREPARATION = multiprocessing.spawn.get_preparation_data


def _without_the_script(name: str) -> dict[str, Any]:
    data: dict[str, Any] = _PREPARATION(name)
    data.pop("init_main_from_path", None)
    return data


def _itself(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return tensor


class _NoFusedKernels:
    """Of Megatron-LM before 0.17, which compiles them with CUDA's compiler at every start."""

    load = _nothing


@contextlib.contextmanager
def training_on_cpu() -> Iterator[None]:
    """Run Megatron-LM on the CPU inside this context.

    Where there is CUDA, and inside another such context, it does nothing.
    """
    if not needs_cpu_backend() or torch.cuda.set_device is _nothing:
        yield
        return
    import_kernels_without_triton()
    from megatron.training import arguments, initialize, training

    with contextlib.ExitStack() as stack:
        stack.enter_context(cpu_backend())
        for target, name, replacement in (
            (torch.cuda, "device_count", lambda: 1),
            (torch.cuda, "set_device", _nothing),
            (torch.cuda, "Stream", torch.cpu.Stream),
            (torch.cuda, "stream", torch.cpu.stream),
            (torch.Tensor, "pin_memory", _itself),
            (multiprocessing.spawn, "get_preparation_data", _without_the_script),
            (training, "set_jit_fusion_options", _nothing),
            (initialize, "fused_kernels", _NoFusedKernels),
            (arguments, "get_device_arch_version", lambda: 10),
            (
                training,
                "initialize_megatron",
                functools.partial(training.initialize_megatron, allow_no_cuda=True),
            ),
        ):
            if not hasattr(target, name):  # not in this release
                continue
            stack.callback(setattr, target, name, getattr(target, name))
            setattr(target, name, replacement)
        yield
