"""What a plan has to know of a GPU, its node and its network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from megatron_ultralong.config.plain_values import from_dict
from megatron_ultralong.model.flops import PEAK_TFLOPS, device_key
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.fields import Range, check_ranges

KERNELS = ("fa4", "fa3", "cudnn", "fa2", "cpu")


@dataclasses.dataclass(frozen=True)
class Hardware:
    """A GPU and what is around it. TFLOP/s are dense bf16; GB are 10^9 bytes, GiB 2^30.

    Rates are what programs reach, not what data sheets say, but for ``peak_tflops``.
    """

    name: str
    memory_gib: Annotated[float, Range(above=0, most=1_000_000)]
    """Of one GPU, as the driver gives it to a program."""
    peak_tflops: Annotated[float, Range(above=0, most=1_000_000)]
    """Data sheet; MFU is counted over it."""
    attention_forward_tflops: Annotated[float, Range(above=0, most=1_000_000)]
    """Attention of a block of queries with keys of another rank, its own area counted."""
    diagonal_forward_tflops: Annotated[float, Range(above=0, most=1_000_000)]
    """Attention forward of a rank's queries with its own keys, where half of the square counts."""
    attention_backward_tflops: Annotated[float, Range(above=0, most=1_000_000)]
    """Backward of either; five products where forward has two."""
    matmul_tflops: Annotated[float, Range(above=0, most=1_000_000)]
    """Projections, MLP and output layer of a tensor-parallel rank, nothing between them."""
    hbm_gb_per_second: Annotated[float, Range(above=0, most=1_000_000)]
    """Of the elementwise operations between them."""
    nvlink_gb_per_second: Annotated[float, Range(above=0, most=1_000_000)]
    """A collective inside a node, each rank."""
    network_gb_per_second: Annotated[float, Range(above=0, most=1_000_000)]
    """Between nodes, each GPU."""
    host_gb_per_second: Annotated[float, Range(above=0, most=1_000_000)]
    """Between a GPU and pinned host memory, each way."""
    gpus_per_node: Annotated[int, Range(1)] = 8
    host_memory_gib: Annotated[float, Range(above=0, most=1_000_000)] = 2048.0
    """Of a node."""
    host_pin_gib_per_second: Annotated[float, Range(above=0, most=1_000_000)] = 2.75
    """Host memory that a node pins in the first iteration: 258 GiB made it 94 s longer than the
    plan's step on four H100 (benchmarks/training.md)."""
    host_adam_billion_per_second: Annotated[float, Range(above=0, most=1_000_000)] = 1.0
    """Weights of an offloaded optimizer that a rank's CPU thread updates: torch's fused AdamW does
    1.9 in one thread of an EPYC alone (benchmarks/plan.md); half of it where ranks share memory."""
    storage_gb_per_second: Annotated[float, Range(above=0, most=1_000_000)] = 1.0
    """What a node writes to where checkpoints go; assumed (0.3 was seen on a cloud's disk)."""
    fp8_recipes: tuple[str, ...] = ("delayed", "tensorwise", "blockwise")
    """Values of ``--fp8-recipe`` that it has instructions for."""
    multiprocessors: Annotated[int, Range(1)] = 132
    attention_kernel: str = "cudnn"
    """Whose workspace and rates these are: fa4, cudnn or fa2."""
    source: str = ""
    """Where the rates come from."""


_H100 = Hardware(
    name="h100-80gb",
    memory_gib=79.1,
    peak_tflops=PEAK_TFLOPS["H100"],
    attention_forward_tflops=600.0,
    diagonal_forward_tflops=509.0,
    attention_backward_tflops=545.0,
    matmul_tflops=570.0,
    hbm_gb_per_second=2400.0,
    nvlink_gb_per_second=370.0,
    network_gb_per_second=45.0,
    host_gb_per_second=50.0,
    source="attention by cuDNN, products and elementwise measured on H100s (benchmarks/plan.md); "
    "links assumed",
)
_FA4: dict[str, Any] = {
    "attention_forward_tflops": 660.0,
    "diagonal_forward_tflops": 682.0,
    "attention_backward_tflops": 615.0,
    "attention_kernel": "fa4",
}
_NVL: dict[str, Any] = {
    # An NVL card has the multiprocessors of the SXM module at lower clocks (350 to 600 W).
    name: round(getattr(_H100, name) * PEAK_TFLOPS["H100 NVL"] / PEAK_TFLOPS["H100"])
    for name in (
        "attention_forward_tflops",
        "diagonal_forward_tflops",
        "attention_backward_tflops",
        "matmul_tflops",
    )
}

HARDWARE: dict[str, Hardware] = {
    "h100-80gb": _H100,
    "h100-80gb-fa4": dataclasses.replace(
        _H100,
        name="h100-80gb-fa4",
        **_FA4,
        source="attention by flash-attn-4 measured on one H100 (benchmarks/attention.md); links "
        "assumed",
    ),
    "h200-141gb": dataclasses.replace(
        _H100,
        name="h200-141gb",
        memory_gib=139.8,
        peak_tflops=PEAK_TFLOPS["H200"],
        hbm_gb_per_second=3400.0,
        source="an H100's rates with the H200's memory; a whole job on four H200 took what is "
        "planned within 3 % (benchmarks/plan.md)",
    ),
    "h100-94gb-nvl": dataclasses.replace(
        _H100,
        name="h100-94gb-nvl",
        memory_gib=92.9,
        peak_tflops=PEAK_TFLOPS["H100 NVL"],
        hbm_gb_per_second=2800.0,
        nvlink_gb_per_second=180.0,
        **_NVL,
        source="an H100's rates by the ratio of the peaks, NVLink in pairs; not measured",
    ),
    "h200-141gb-nvl": dataclasses.replace(
        _H100,
        name="h200-141gb-nvl",
        memory_gib=139.8,
        peak_tflops=PEAK_TFLOPS["H200 NVL"],
        hbm_gb_per_second=3400.0,
        nvlink_gb_per_second=370.0,
        **_NVL,
        source="an H100's rates by the ratio of the peaks; not measured",
    ),
    "a100-80gb": dataclasses.replace(
        _H100,
        name="a100-80gb",
        memory_gib=79.1,
        peak_tflops=PEAK_TFLOPS["A100"],
        attention_forward_tflops=200.0,
        diagonal_forward_tflops=200.0,
        attention_backward_tflops=180.0,
        matmul_tflops=220.0,
        hbm_gb_per_second=1600.0,
        nvlink_gb_per_second=230.0,
        network_gb_per_second=22.0,
        host_gb_per_second=24.0,
        fp8_recipes=(),
        multiprocessors=108,
        attention_kernel="fa2",
        source="FlashAttention-2's published rates (arXiv 2307.08691); not measured",
    ),
    "b200-180gb": dataclasses.replace(
        _H100,
        name="b200-180gb",
        memory_gib=178.0,
        peak_tflops=PEAK_TFLOPS["B200"],
        attention_forward_tflops=1400.0,
        diagonal_forward_tflops=1400.0,
        attention_backward_tflops=1000.0,
        matmul_tflops=1200.0,
        hbm_gb_per_second=6000.0,
        nvlink_gb_per_second=740.0,
        fp8_recipes=("delayed", "tensorwise", "blockwise", "mxfp8"),
        multiprocessors=148,
        attention_kernel="fa4",
        source="below flash-attn-4's published rates (1605 forward); not measured",
    ),
}
HARDWARE["gb200-186gb"] = dataclasses.replace(
    HARDWARE["b200-180gb"],
    name="gb200-186gb",
    memory_gib=184.0,
    peak_tflops=PEAK_TFLOPS["GB200"],
    matmul_tflops=1330.0,
    network_gb_per_second=90.0,
    host_gb_per_second=200.0,
    gpus_per_node=4,
    host_memory_gib=960.0,
    source="a B200's rates, products by the ratio of the peaks; trays of four; not measured",
)
"""By the name that ``--gpu`` takes; a file (``--hardware FILE``) describes one's own."""

_DEVICES = {
    "H100": "h100-80gb",
    "H100 NVL": "h100-94gb-nvl",
    "H200": "h200-141gb",
    "H200 NVL": "h200-141gb-nvl",
    "GH200": "h200-141gb",
    "A100": "a100-80gb",
    "B200": "b200-180gb",
    "GB200": "gb200-186gb",
}


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

    ``"NVIDIA H200" -> h200-141gb``, ``"NVIDIA H200 NVL" -> h200-141gb-nvl``.
    """
    key = device_key(device_name) if device_name else None
    return HARDWARE[_DEVICES.get(key or "", _H100.name)]


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
    """Raise InputError where a figure is out of its range."""
    check_ranges(hardware, where=where)
    if hardware.attention_kernel not in KERNELS:
        raise InputError(
            f"{where}: attention_kernel {hardware.attention_kernel!r} is not known: fa4, fa3, "
            "cudnn or fa2"
        )
