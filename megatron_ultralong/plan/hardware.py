"""What a plan has to know of a GPU, its node and its network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from megatron_ultralong.config import from_dict
from megatron_ultralong.errors import InputError


@dataclasses.dataclass(frozen=True)
class Hardware:
    """A GPU and what is around it. TFLOP/s are dense bf16; GB are 10^9 bytes, GiB 2^30.

    Rates are what programs reach, not what data sheets say, but for ``peak_tflops``.
    """

    name: str
    memory_gib: float
    """Of one GPU, as the driver gives it to a program."""
    peak_tflops: float
    """Data sheet; MFU is counted over it."""
    attention_forward_tflops: float
    """Causal attention over long rows, its own area counted."""
    attention_backward_tflops: float
    """The same; five products where forward has two."""
    matmul_tflops: float
    """Projections, MLP and output layer of a tensor-parallel rank."""
    hbm_gb_per_second: float
    """Of the elementwise operations between them."""
    nvlink_gb_per_second: float
    """A collective inside a node, each rank."""
    network_gb_per_second: float
    """Between nodes, each GPU."""
    host_gb_per_second: float
    """Between a GPU and pinned host memory, each way."""
    gpus_per_node: int = 8
    host_memory_gib: float = 2048.0
    """Of a node."""
    attention_kernel: str = "cudnn"
    """Whose workspace and rates these are: fa4, cudnn or fa2."""
    source: str = ""
    """Where the rates come from."""


_H100 = Hardware(
    name="h100-80gb",
    memory_gib=79.1,
    peak_tflops=989.4,
    attention_forward_tflops=600.0,
    attention_backward_tflops=545.0,
    matmul_tflops=330.0,
    hbm_gb_per_second=2400.0,
    nvlink_gb_per_second=370.0,
    network_gb_per_second=45.0,
    host_gb_per_second=50.0,
    source="attention by cuDNN measured on one H100 (benchmarks/attention.md); links assumed",
)

HARDWARE: dict[str, Hardware] = {
    "h100-80gb": _H100,
    "h100-80gb-fa4": dataclasses.replace(
        _H100,
        name="h100-80gb-fa4",
        attention_forward_tflops=660.0,
        attention_backward_tflops=615.0,
        attention_kernel="fa4",
        source="attention by flash-attn-4 measured on one H100 (benchmarks/attention.md); links "
        "assumed",
    ),
    "h200-141gb": dataclasses.replace(
        _H100,
        name="h200-141gb",
        memory_gib=139.8,
        hbm_gb_per_second=3400.0,
        source="an H100's rates with the H200's memory; not measured",
    ),
    "a100-80gb": dataclasses.replace(
        _H100,
        name="a100-80gb",
        memory_gib=79.1,
        peak_tflops=311.9,
        attention_forward_tflops=200.0,
        attention_backward_tflops=180.0,
        matmul_tflops=220.0,
        hbm_gb_per_second=1600.0,
        nvlink_gb_per_second=230.0,
        network_gb_per_second=22.0,
        host_gb_per_second=24.0,
        attention_kernel="fa2",
        source="FlashAttention-2's published rates (arXiv 2307.08691); not measured",
    ),
    "b200-180gb": dataclasses.replace(
        _H100,
        name="b200-180gb",
        memory_gib=178.0,
        peak_tflops=2250.0,
        attention_forward_tflops=1400.0,
        attention_backward_tflops=1000.0,
        matmul_tflops=1200.0,
        hbm_gb_per_second=6000.0,
        nvlink_gb_per_second=740.0,
        attention_kernel="fa4",
        source="below flash-attn-4's published rates (1605 forward); not measured",
    ),
}
"""By the name that ``--gpu`` takes; a file (``--hardware FILE``) describes one's own."""


def hardware_by_name(name: str) -> Hardware:
    """A GPU of the table.

    Raises:
        InputError: it is not there.
    """
    if name not in HARDWARE:
        raise InputError(
            f"--gpu {name!r} is not known; known: {', '.join(HARDWARE)}; describe another one in a "
            "YAML file and name it by --hardware"
        )
    return HARDWARE[name]


def hardware_of_device(device_name: str | None) -> Hardware:
    """The entry for a device as CUDA names it; without one, or for one unknown, the H100.

    ``"NVIDIA H200" -> h200-141gb``.
    """
    for name, hardware in HARDWARE.items():
        if device_name and name.split("-")[0].upper() in device_name:
            return hardware
    return _H100


def hardware_from(values: Mapping[str, Any], where: str) -> Hardware:
    """One's own GPU: every field of :class:`Hardware`, or ``like`` one of the table, with changes.

    Raises:
        InputError: a field is unknown, missing or out of range.
    """
    known = dict(values)
    like = known.pop("like", None)
    if like is not None:
        known = {**dataclasses.asdict(hardware_by_name(str(like))), "source": where, **known}
    found = from_dict(Hardware, known, where)
    check(found, where)
    return found


def check(hardware: Hardware, where: str) -> None:
    """Raise InputError where a figure is not a positive number."""
    for field in dataclasses.fields(Hardware):
        value = getattr(hardware, field.name)
        if field.name in ("name", "attention_kernel", "source"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InputError(f"{where}: {field.name} must be a number above 0, not {value!r}")
    if hardware.attention_kernel not in ("fa4", "fa3", "cudnn", "fa2", "cpu"):
        raise InputError(
            f"{where}: attention_kernel {hardware.attention_kernel!r} is not known: fa4, fa3, "
            "cudnn or fa2"
        )
