"""Megatron-Core on a CPU over gloo.

Megatron-Core names the device ``cuda`` in its own code. Where there is no CUDA device,
:func:`cpu_backend` changes what those words mean, in this process and until it is left:

* ``torch.cuda.current_device()`` answers ``"cpu"``, so tensors made "on the current device" are CPU
  tensors; ``torch.cuda.synchronize`` and ``empty_cache`` do nothing (a CPU has no queue), and
  streams are ``torch.cpu``'s, whose waits do nothing either.
* ``torch.cuda.manual_seed`` and the get and set of the CUDA generator's state, also under the two
  names that ``megatron.core.tensor_parallel.random`` gives them, act on the CPU generator: Megatron
  forks that state to draw different weights on every tensor-parallel rank.
* A ``TorchFunctionMode`` reads ``device="cuda"`` (or an integer) as ``"cpu"``, makes
  ``Tensor.cuda()`` the identity, and lets ``Tensor.type()`` answer ``torch.cuda.FloatTensor``: the
  optimizers check that string and nothing else.
* The optimizer that keeps states in host memory asks of every tensor whether it is on the GPU, to
  share them out; :func:`_share_out` does it by their number alone.

Nothing else of Megatron-Core is replaced: model, schedules, optimizer and checkpoints are its own.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def needs_cpu_backend() -> bool:
    """Whether Megatron-Core has to be told that the device is the CPU."""
    return not torch.cuda.is_available()


def device() -> torch.device:
    """The device that this process works on."""
    if needs_cpu_backend():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _means_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.split(":")[0] == "cuda"


class _CudaMeansCpu(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.")
        if kwargs:
            place = kwargs.get("device")
            if _means_cuda(place) or (isinstance(place, int) and not isinstance(place, bool)):
                kwargs = {**kwargs, "device": "cpu"}
        if func is torch.Tensor.to and len(args) > 1 and _means_cuda(args[1]):
            args = (args[0], "cpu", *args[2:])
        return func(*args, **kwargs)


class _CpuStream(torch.cpu.Stream):
    def record_event(self) -> torch.cpu.Event:  # type: ignore[override]
        """An event that has come already."""
        return torch.cpu.Event()


def _share_out(optimizer: Any, offload_fraction: float) -> tuple[Any, ...]:
    """``HybridDeviceOptimizer._get_sub_optimizer_param_groups``, with the host for a GPU too."""
    rest = offload_fraction * sum(p.numel() for g in optimizer.param_groups for p in g["params"])
    host_groups, device_groups, to_host, to_device, to_float32 = [], [], {}, {}, {}
    for group in optimizer.param_groups:
        host, device = [], []
        for parameter in group["params"]:
            inner = parameter
            if rest > 0 or parameter.dtype != torch.float32:
                inner = parameter.detach().clone().float()
            if parameter.dtype != torch.float32:
                to_float32[parameter] = inner
            if rest > 0:
                to_host[parameter], to_device[inner] = inner, parameter
                rest -= parameter.numel()
                host.append(inner)
            else:
                device.append(inner)
        host_groups += [{**group, "params": host}] if host else []
        device_groups += [{**group, "params": device}] if device else []
    return host_groups, device_groups, to_host, to_device, to_float32


def do_nothing(*args: Any, **kwargs: Any) -> None:
    """Stands for what a CPU has no need of."""


@contextlib.contextmanager
def replaced(*replacements: tuple[Any, str, Any]) -> Iterator[None]:
    """Inside this context, other attributes of modules and classes: (owner, name, value) each."""
    with contextlib.ExitStack() as stack:
        for target, name, value in replacements:
            stack.callback(setattr, target, name, getattr(target, name))
            setattr(target, name, value)
        yield


@contextlib.contextmanager
def cpu_backend() -> Iterator[None]:
    """Run Megatron-Core on the CPU inside this context.

    Where there is CUDA, and inside another such context, it does nothing.
    """
    if not needs_cpu_backend() or torch.cuda.synchronize is do_nothing:
        yield
        return
    from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
    from megatron.core.tensor_parallel import random as megatron_random

    def cpu_rng_state(*_: Any, **__: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_cpu_rng_state(new_state: torch.Tensor, *_: Any, **__: Any) -> None:
        torch.set_rng_state(new_state)

    replacements = (
        (torch.cuda, "current_device", lambda: "cpu"),
        (torch.cuda, "synchronize", do_nothing),
        (torch.cuda, "empty_cache", do_nothing),
        (torch.cuda, "current_stream", lambda *_, **__: _CpuStream()),
        (torch.cuda, "stream", torch.cpu.stream),
        (torch.cuda, "Stream", _CpuStream),
        (HybridDeviceOptimizer, "_get_sub_optimizer_param_groups", _share_out),
        (torch.cuda, "manual_seed", torch.manual_seed),
        (torch.cuda, "get_rng_state", cpu_rng_state),
        (torch.cuda, "set_rng_state", set_cpu_rng_state),
        (megatron_random, "_get_cuda_rng_state", cpu_rng_state),
        (megatron_random, "_set_cuda_rng_state", set_cpu_rng_state),
    )
    with replaced(*replacements), _CudaMeansCpu():
        yield


@contextlib.contextmanager
def compile_at_first_call() -> Iterator[None]:
    """While this is entered, a function given to ``torch.compile`` is compiled when it is called.

    Megatron-Core decorates its fused functions with ``torch.compile`` when it is imported, and the
    decorator imports torch's whole compiler, half of the time that Megatron-Core takes to import,
    on every rank; on a CPU none of these functions is called.

    What is compiled, and its arguments, stay the same; modules (which ``torch.compile`` wraps in
    another class) are compiled at once.
    """
    at_once = torch.compile

    def deferred(model: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
        if model is None:
            return functools.partial(deferred, **options)
        if isinstance(model, torch.nn.Module):
            return at_once(model, **options)
        compiled = functools.cache(lambda: at_once(model, **options))

        @functools.wraps(model)
        def call(*args: Any, **kwargs: Any) -> Any:
            return compiled()(*args, **kwargs)

        return call

    with replaced((torch, "compile", deferred)):
        yield
