"""Floating-point operations of a model's passes, with the attention area that is truly computed.

A multiplication and an addition count as two. Only products of matrices count, as in the usual
definition of model FLOPs (PaLM, arXiv 2204.02311, appendix B): norms, rotary embedding, softmax and
the embedding's look-up do not, and neither does recomputation. Causal attention is counted by its
pairs of query and key, so half of the square, and by documents where they are masked.
"""

from __future__ import annotations

import dataclasses
import re

from megatron_ultralong.model.shape import ModelConfig

BACKWARD_RATIO = 2
"""Backward makes the gradients of both factors of every product: twice the forward pass."""

PEAK_TFLOPS: dict[str, float] = {
    "GB300": 2500.0,
    "GB200": 2500.0,
    "B300": 2250.0,
    "B200": 2250.0,
    "GH200": 989.4,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 311.9,
    "A800": 311.9,
    "L40S": 362.05,
}
"""Dense bf16 peak of a device in TFLOP/s, by words of its name: the one place for peaks.

From NVIDIA's data sheets, whose figures with sparsity are twice these: 1,979 of an H100 or H200
SXM, 1,671 of an H100 NVL or H200 NVL, 1,513 of an H100 PCIe, 4.5 PFLOP/s of a GPU of HGX B200 and
B300, 360 PFLOP/s of the 72 GPUs of a GB200 or GB300 NVL72."""


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations by the part of the model that does them."""

    projections: float
    """Attention's four projections, all layers."""
    attention: float
    """Scores and weighted values, all layers."""
    mlp: float
    """Gate, up and down, all layers."""
    output: float
    """The output layer."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.projections + self.attention + self.mlp + self.output

    def times(self, factor: float) -> Flops:
        """Every part multiplied by ``factor``."""
        return Flops(*(factor * part for part in dataclasses.astuple(self)))


def forward_flops(model: ModelConfig, num_tokens: float, area: float) -> Flops:
    """Operations of one forward pass over ``num_tokens`` tokens with attention ``area``.

    Args:
        model: shape of the model.
        num_tokens: tokens of all rows.
        area: sum of ``causal_area`` over the rows.
    """
    query = model.num_attention_heads * model.kv_channels
    key_and_value = 2 * model.num_query_groups * model.kv_channels
    # In and out of attention: [h, q + k + v] and [q, h]; a product with [m, n] is 2 m n a token.
    projections = 2 * model.hidden_size * (query + key_and_value + query)
    mlp = 2 * 3 * model.hidden_size * model.ffn_hidden_size
    return Flops(
        projections=float(model.num_layers * projections * num_tokens),
        attention=float(model.num_layers * 2 * 2 * query * area),
        mlp=float(model.num_layers * mlp * num_tokens),
        output=float(2 * model.hidden_size * model.vocab_size * num_tokens),
    )


def training_flops(model: ModelConfig, num_tokens: float, area: float) -> Flops:
    """Operations of forward and backward, without recomputation: three forward passes."""
    return forward_flops(model, num_tokens, area).times(1 + BACKWARD_RATIO)


def device_key(device_name: str) -> str | None:
    """The entry of :data:`PEAK_TFLOPS` for a device as CUDA names it, the longest that fits.

    ``"NVIDIA H200 NVL" -> "H200 NVL"``; a part of a word is none: ``"NVIDIA GH200 480GB" ->
    "GH200"``, ``"NVIDIA H2000" -> None``.
    """
    words = set(re.split(r"[^A-Za-z0-9]+", device_name))
    for part in sorted(PEAK_TFLOPS, key=len, reverse=True):
        if words.issuperset(part.split()):
            return part
    return None


def peak_tflops(device_name: str) -> float | None:
    """Dense bf16 peak in TFLOP/s of a device: ``"NVIDIA H100 80GB HBM3" -> 989.4``.

    None where the device is not in :data:`PEAK_TFLOPS`.
    """
    key = device_key(device_name)
    return None if key is None else PEAK_TFLOPS[key]
