"""FLOPs against counts by torch's own counter, and areas against masks written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from megatron_ultralong.checkpoint.formats.hugging_face_config import model_config, read_config
from megatron_ultralong.model.flops import forward_flops, peak_tflops, training_flops
from megatron_ultralong.sequence.documents import causal_area
from tests.models import write_llama


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_the_area_counts_the_pairs_of_the_mask(lengths: list[int]) -> None:
    documents = np.repeat(np.arange(len(lengths)), lengths)
    mask = np.tril(documents[:, None] == documents[None, :])
    assert causal_area(np.cumsum([0, *lengths])) == mask.sum()


def test_areas_of_long_rows_do_not_overflow() -> None:
    length = 4_194_304
    assert causal_area(np.asarray([0, length], np.int32)) == length * (length + 1) // 2


def test_flops_are_those_that_torch_counts(tmp_path: Path) -> None:
    judge = write_llama(tmp_path)
    judge.config._attn_implementation = "eager"
    model = model_config(read_config(tmp_path))
    length = 32
    tokens = torch.arange(length)[None]
    with FlopCounterMode(display=False) as counter:
        judge(tokens).logits.sum().backward()
    # eager attention multiplies the whole square, masked or not; ours counts the given area
    actual = training_flops(model, length, length * length)
    counted = counter.get_total_flops()
    assert actual.total == counted
    assert forward_flops(model, length, 0).attention == 0


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA A100-SXM4-80GB", 311.9),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA H2000", None),
        ("some other device", None),
    ],
)
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak
