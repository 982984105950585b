"""What a plan has to know of a GPU, its node and its network."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from megatron_ultralong.config.plain_values import from_dict
from megatron_ultralong.model.flops import PEAK_TFLOPS, device_key
from megatron_ultralong.program.errors import InputError, not_known
from megatron_ultralong.program.fields import TEXT, Range

Kernel = Literal["fa4", "fa3", "cudnn", "fa2", "cpu"]


@dataclasses.dataclass(frozen=True)
class Hardware:
    """A GPU and what is around it. TFLOP/s are dense bf16; GB are 10^9 bytes, GiB 2^30.

    Rates are what programs reach, not what data sheets say, except for ``peak_tflops``.
    """

    name: Annotated[str, TEXT]
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
    host_pin_gib_per_second: Annotated[float, Range(above=0, most=1_000_000)] = 22.0
    """Host memory that a run pins for activations: 22.4 to 22.8 by one process on 16 cores of an
    H200 machine (benchmarks/training.md)."""
    host_adam_billion_per_second: Annotated[float, Range(above=0, most=1_000_000)] = 1.0
    """Weights of an offloaded optimizer that a rank's CPU thread updates: torch's fused AdamW does
    1.9 in one thread of an EPYC alone (benchmarks/plan.md); half of it where ranks share memory."""
    storage_gb_per_second: Annotated[float, Range(above=0, most=1_000_000)] = 1.0
    """What a node writes to where checkpoints go; assumed (0.3 was seen on a cloud's disk)."""
    fp8_recipes: tuple[str, ...] = ("delayed", "tensorwise", "blockwise")
    """Values of ``--fp8-recipe`` that it has instructions for."""
    multiprocessors: Annotated[int, Range(1)] = 132
    attention_kernel: Kernel = "cudnn"
    """Whose workspace and rates these are."""
    source: Annotated[str, TEXT] = ""
    """Where the rates come from."""


_Rates = tuple[float, float, float, float]


def _gpu(
    name: str,
    device: str,
    memory_gib: float,
    tflops: _Rates,
    gb_per_second: _Rates,
    source: str,
    **others: Any,
) -> tuple[str, Hardware]:
    """An entry behind its device: rates of attention forward, on the diagonal, backward, and of
    other products; then those of HBM, NVLink, the network and the host, in the order of the fields.
    """
    peak = PEAK_TFLOPS[device]
    gpu = Hardware(name, memory_gib, peak, *tflops, *gb_per_second, source=source, **others)
    return device, gpu


_H100 = (600.0, 509.0, 545.0, 660.0)
_FA4 = (660.0, 682.0, 615.0, 660.0)
# An NVL card has the multiprocessors of the SXM module at lower clocks (350 to 600 W).
_NVL = cast(
    _Rates, tuple(round(rate * PEAK_TFLOPS["H100 NVL"] / PEAK_TFLOPS["H100"]) for rate in _H100)
)
_BLACKWELL: dict[str, Any] = {
    "fp8_recipes": ("delayed", "tensorwise", "blockwise", "mxfp8"),
    "multiprocessors": 148,
    "attention_kernel": "fa4",
}
_GPUS = (
    _gpu(
        *("h100-80gb", "H100", 79.1, _H100, (2160.0, 370.0, 45.0, 50.0)),
        "attention by cuDNN, products and elementwise measured on H100s (benchmarks/plan.md); "
        "links assumed",
    ),
    _gpu(
        *("h100-80gb-fa4", "H100", 79.1, _FA4, (2160.0, 370.0, 45.0, 50.0)),
        "attention by flash-attn-4 measured on one H100 (benchmarks/attention.md); links assumed",
        attention_kernel="fa4",
    ),
    _gpu(
        *("h200-141gb", "H200", 139.8, _H100, (3060.0, 370.0, 45.0, 50.0)),
        "an H100's rates with the H200's memory; a whole job on four H200 took what is planned "
        "within 3 % (benchmarks/plan.md)",
    ),
    _gpu(
        *("h200-141gb-fa4", "H200", 139.8, _FA4, (3060.0, 370.0, 45.0, 50.0)),
        "an H100's rates with flash-attn-4 and the H200's memory; the whole 8B on four H200 took "
        "what is planned within 8 % (benchmarks/plan.md)",
        attention_kernel="fa4",
    ),
    _gpu(
        *("h100-94gb-nvl", "H100 NVL", 92.9, _NVL, (2520.0, 180.0, 45.0, 50.0)),
        "an H100's rates by the ratio of the peaks, NVLink in pairs; not measured",
    ),
    _gpu(
        *("h200-141gb-nvl", "H200 NVL", 139.8, _NVL, (3060.0, 370.0, 45.0, 50.0)),
        "an H100's rates by the ratio of the peaks; not measured",
    ),
    _gpu(
        *("a100-80gb", "A100", 79.1, (200.0, 200.0, 180.0, 220.0), (1600.0, 230.0, 22.0, 24.0)),
        "FlashAttention-2's published rates (arXiv 2307.08691); not measured",
        fp8_recipes=(),
        multiprocessors=108,
        attention_kernel="fa2",
    ),
    _gpu(
        *("b200-180gb", "B200", 178.0, (1400.0, 1400.0, 1000.0, 1200.0)),
        (6000.0, 740.0, 45.0, 50.0),
        "below flash-attn-4's published rates (1605 forward); not measured",
        **_BLACKWELL,
    ),
    _gpu(
        *("gb200-186gb", "GB200", 184.0, (1400.0, 1400.0, 1000.0, 1330.0)),
        (6000.0, 740.0, 90.0, 200.0),
        "a B200's rates, products by the ratio of the peaks; trays of four; not measured",
        gpus_per_node=4,
        host_memory_gib=960.0,
        **_BLACKWELL,
    ),
)
HARDWARE = {gpu.name: gpu for _, gpu in _GPUS}
"""By the name that ``--gpu`` takes; a file (``--hardware FILE``) describes one's own."""

_DEVICES = {"GH200": "h200-141gb", **{device: gpu.name for device, gpu in reversed(_GPUS)}}
"""The first entry of each device."""


def hardware_by_name(name: str) -> Hardware:
    """A GPU of the table.

    Raises:
        InputError: it is not there.
    """
    if name not in HARDWARE:
        raise InputError(
            f"{not_known('--gpu', name, HARDWARE)}; describe another one in a YAML file and name "
            "it by --hardware"
        )
    return HARDWARE[name]


def hardware_of_device(device_name: str | None) -> Hardware:
    """The entry for a device as CUDA names it; without one, or for one unknown, the H100.

    ``"NVIDIA H200" -> h200-141gb``, ``"NVIDIA H200 NVL" -> h200-141gb-nvl``.
    """
    key = device_key(device_name) if device_name else None
    return HARDWARE[_DEVICES.get(key or "", "h100-80gb")]


def hardware_in_use(device_name: str, kernel: str) -> Hardware | None:
    """The entry for a device that computes attention by a kernel; None where there is none.

    ``"NVIDIA H200", "fa4" -> h200-141gb-fa4``.
    """
    key = device_key(device_name)
    fitting = (gpu for device, gpu in _GPUS if device == key and gpu.attention_kernel == kernel)
    return next(fitting, None)


def hardware_here(device_name: str | None, kernel: str = "") -> tuple[Hardware, str]:
    """What a run on this machine is planned for, and a line that says what of it is assumed.

    ``device_name`` is as CUDA names it, None: there is no GPU; ``kernel`` computes attention on it.
    """
    if device_name is None:
        hardware = hardware_of_device(None)
        return hardware, (
            f"assumed, for there is no GPU here: {hardware.name}, attention at the rates of "
            f"{hardware.attention_kernel}; `ultralong plan ... --gpu NAME` plans for another, "
            f"{hardware.name}-fa4 for flash-attn-4 on the same"
        )
    hardware, own = hardware_of_device(device_name), kernel or "a kernel"
    found = hardware_in_use(device_name, kernel)
    if hardware.attention_kernel == kernel and device_key(device_name) in _DEVICES:
        found = hardware  # a GH200 has that of an H200
    if found:
        return found, f"attention at the rates of {kernel}, which computes it on this GPU"
    if device_key(device_name) not in _DEVICES:
        return hardware, (
            f"assumed: {hardware.name}, for {device_name} is not in the table: `ultralong plan "
            "... --hardware FILE` plans for one that a file describes"
        )
    return hardware, (
        f"assumed: attention at the rates of {hardware.attention_kernel}, for the table has none "
        f"of {own} on {device_name}, which computes it here: `ultralong plan ... --hardware FILE` "
        "plans with other rates"
    )


def hardware_from(values: Mapping[str, Any], where: str) -> Hardware:
    """One's own GPU: every field of :class:`Hardware`, or ``like`` one of the table, with changes.

    Raises:
        InputError: a field is unknown, missing or out of range.
    """
    known = dict(values)
    like = known.pop("like", None)
    if like is not None:
        known = {**dataclasses.asdict(hardware_by_name(str(like))), "source": where, **known}
    return from_dict(Hardware, known, where)
