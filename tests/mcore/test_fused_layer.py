"""Layers with fused elementwise work against Megatron-Core's operations, one by one."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core.fusions import fused_bias_swiglu
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from megatron_ultralong.mcore import elementwise, projection
from megatron_ultralong.mcore.model import build_model, transformer_config
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.mcore.recomputed_layer import Recomputation
from megatron_ultralong.model.shape import ModelConfig
from megatron_ultralong.plan.job import Job
from megatron_ultralong.plan.work import layer_work
from megatron_ultralong.program.errors import InputError
from tests.mcore.test_recomputed_layer import MODEL
from tests.ranks import run_on_ranks

SEQ_LENGTH = 96
Values = dict[str, torch.Tensor]
ONE, TP2 = ParallelConfig(), ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
FEW_GROUPS = dataclasses.replace(MODEL, num_query_groups=1)
WIDE = dataclasses.replace(MODEL, hidden_size=256, ffn_hidden_size=384, kv_channels=64)
NORMED = dataclasses.replace(MODEL, model_type="qwen3")


def layer_values(
    groups: ProcessGroupCollection,
    parallel: ParallelConfig,
    recomputation: Recomputation,
    *,
    model: ModelConfig = MODEL,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> Values:
    """Losses and gradients of this rank, of two passes over two rows."""
    config = transformer_config(model, parallel, params_dtype=dtype, compiled=compiled)
    built = build_model(
        *(model, config, groups),
        seq_length=SEQ_LENGTH,
        rope_scaling=None,
        recomputation=recomputation,
    ).to(dtype)
    generator = torch.Generator().manual_seed(groups.tp.rank())
    for parameter in built.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.ndim == 1)
        parameter.data.copy_(drawn.bfloat16())  # the same weights in every dtype
    device = next(built.parameters()).device
    rows = torch.randint(64, (2, SEQ_LENGTH + 1), generator=torch.Generator().manual_seed(9))
    rows = rows.to(device)
    for _ in range(2):
        losses = built(rows[:, :-1], None, None, labels=rows[:, 1:])
        losses.square().sum().backward()
    found = {name: x.grad.cpu() for name, x in built.named_parameters() if x.grad is not None}
    return {"losses": losses.detach().cpu(), **found}


def both(
    parallel: ParallelConfig, tile_size: int, model: ModelConfig, dtype: torch.dtype
) -> list[Values]:
    """Run on every rank: fused and plain; of bfloat16 in float32 too."""
    with parallel_groups(parallel, seed=1) as groups:
        ways = [(True, dtype), (False, dtype), (False, torch.float32)]
        return [
            layer_values(
                *(groups, parallel, Recomputation(tile_size=tile_size, fused=fused)),
                model=model,
                dtype=its,
            )
            for fused, its in ways[: 2 if dtype is torch.float32 else 3]
        ]


@pytest.mark.parametrize(
    ("ranks", "parallel", "tile_size", "model"),
    [
        (1, ONE, 0, MODEL),
        (1, ONE, 20, MODEL),  # four tiles and a shorter one
        (1, ONE, 20, NORMED),
        (2, TP2, 20, MODEL),
        (2, TP2, 0, FEW_GROUPS),  # one group of queries on two ranks
    ],
    ids=["whole", "tiles", "norms of queries", "runs", "a shared group"],
)
def test_fused_layers_have_the_losses_and_gradients_of_plain_ones(
    ranks: int, parallel: ParallelConfig, tile_size: int, model: ModelConfig
) -> None:
    for fused, plain in run_on_ranks(ranks, both, parallel, tile_size, model, torch.float32):
        assert fused.keys() == plain.keys()
        for name, exact in plain.items():
            # Sums of products are rounded elsewhere; float32 has 24 bits.
            error = (fused[name] - exact).norm() / exact.norm()
            assert error <= 1e-6, (name, error)


def test_in_bfloat16_they_are_no_further_from_float32() -> None:
    (found,) = run_on_ranks(1, both, ONE, 20, MODEL, torch.bfloat16)

    def errors(way: Values) -> dict[str, float]:
        return {
            name: float((way[name] - exact).norm() / exact.norm())
            for name, exact in found[2].items()
        }

    fused, plain = errors(found[0]), errors(found[1])
    # Fewer roundings.
    assert fused["losses"] <= plain["losses"], (fused["losses"], plain["losses"])
    # Gradients are as much a matter of luck: over seeds the mean of both is the same, with a
    # spread of a fifth.
    assert sum(fused.values()) <= 1.5 * sum(plain.values()), (fused, plain)


def test_a_rotation_and_its_reverse_are_those_of_complex_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, 3, 2, 8, generator=generator, dtype=torch.float64)
    angle = torch.randn(5, 1, 1, 1, 8, generator=generator, dtype=torch.float64)
    sin = torch.cat((-angle.sin(), angle.sin()), dim=-2)
    turned, back = torch.empty_like(x), torch.empty_like(x)
    projection.rotate(turned, x, angle.cos(), sin)
    exact = torch.complex(*x.unbind(-2)) * torch.polar(torch.ones_like(angle), angle)[..., 0, :]
    # Float32 inside.
    torch.testing.assert_close(torch.complex(*turned.unbind(-2)), exact, rtol=1e-5, atol=1e-6)
    projection.rotate(back, turned, angle.cos(), -sin)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-6)


class Compilations:
    """A backend of ``torch.compile`` that counts, and runs what it is given."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        self.number += 1
        return graph


# Groups, heads of one, width: queries and keys of GQA, of two head sizes; MHA; one group; heads
# without groups, behind norms.
ROTATED = [(8, 4, 16), (8, 1, 16), (8, 4, 8), (8, 1, 8), (4, 1, 8), (1, 8, 16), (1, 24, 16)]


@pytest.fixture
def compilations(monkeypatch) -> Iterator[Compilations]:
    torch._dynamo.reset()
    projection._compiled.cache_clear()
    counter = Compilations()
    monkeypatch.setattr(projection, "BACKEND", counter)
    config = torch._dynamo.config
    limit, config.cache_size_limit = config.cache_size_limit, 8  # torch's own
    yield counter
    config.cache_size_limit = limit
    projection._compiled.cache_clear()
    torch._dynamo.reset()


def test_any_number_of_lengths_takes_two_compilations(compilations) -> None:
    """One more for a single token, for every shape, layout and dtype: no limit is reached."""
    kinds = [(shape, torch.bfloat16, back, 1) for shape in ROTATED for back in (False, True)]
    kinds.append((ROTATED[0], torch.float32, False, 1))
    kinds.append((ROTATED[0], torch.bfloat16, False, 2))  # of sequence parallelism
    assert len(kinds) > 8
    for (groups, heads, width), dtype, is_back, runs in kinds:
        before = compilations.number
        for length in (16, 16, 12, 9, 16, 7, 24, 1):
            whole = torch.zeros(runs, 64, 1, groups, heads, 2, width, dtype=dtype)[
                :, 3 : 3 + length
            ]
            mixed = torch.randn(runs, length, 1, groups, heads + 2, 2, width).to(dtype)[
                ..., :-2, :, :
            ]
            angle = torch.randn(runs, length, 1, 1, 1, 1, width)
            cos, sin = angle.cos(), torch.cat((-angle.sin(), angle.sin()), dim=-2)
            out, x = (mixed, whole) if is_back else (whole, mixed)
            if is_back:
                x.copy_(torch.randn(x.shape))
            expected = out.clone()
            projection.rotate(expected, x, cos, sin)
            projection.compiled_rotate(out, x, cos, sin)
            assert torch.equal(out, expected)
        assert compilations.number - before <= 3, (groups, heads, width, dtype, is_back, runs)


@pytest.mark.faults
def test_compiled_layers_of_many_models_reach_no_limit(compilations, monkeypatch) -> None:
    """Tiles and a shorter one; groups shared and not; two widths, with norms and without."""
    kernel = projection.compiled_rotate
    called = []

    def compiled(*tensors: torch.Tensor) -> None:
        called.append(1)
        kernel(*tensors)

    monkeypatch.setattr(projection, "is_compiled", lambda _: True)
    monkeypatch.setattr(projection, "compiled_rotate", compiled)
    with parallel_groups(ONE, seed=1) as groups:
        for model in (MODEL, FEW_GROUPS, NORMED, WIDE):
            tiles = Recomputation(tile_size=20, fused=True)
            layer_values(groups, ONE, tiles, model=model, dtype=torch.bfloat16)
    assert compilations.number > 8
    assert len(called) > compilations.number


def test_no_model_s_swiglu_runs_operation_by_operation(compilations) -> None:
    elementwise.keep_compilations()
    forward, backward = (
        # It raises where Megatron-Core's own would continue uncompiled.
        torch.compile(inspect.unwrap(function), fullgraph=True, backend=compilations)
        for function in (fused_bias_swiglu.swiglu, fused_bias_swiglu.swiglu_back)
    )
    draw = random.Random(0)
    for _ in range(60):
        dtype = draw.choice([torch.bfloat16, torch.float32])
        length = draw.choice([1, 16, draw.randint(2, 40)])
        wide = torch.randn(length, 2 * draw.choice([8, 12, 16, 24, 64]), dtype=dtype)
        half = torch.randn(length, wide.shape[-1] // 2, dtype=dtype)
        kept = [contextlib.nullcontext, torch.no_grad, torch.inference_mode]
        with draw.choice(kept)():
            found = forward(wide.requires_grad_(draw.random() < 0.5 and torch.is_grad_enabled()))
            torch.testing.assert_close(found, inspect.unwrap(fused_bias_swiglu.swiglu)(wide))
            backward(half, wide)
    assert compilations.number > 8


def test_a_linear_layer_without_its_product_has_its_gradients() -> None:
    assert run_on_ranks(1, products_and_gradients) == [True]


def products_and_gradients() -> bool:
    """Run on every rank: gradients of a layer with garbage for its result, bit by bit."""
    with parallel_groups(ONE, seed=1) as groups:
        config = transformer_config(MODEL, ONE, params_dtype=torch.float32)
        built = build_model(MODEL, config, groups, seq_length=SEQ_LENGTH, rope_scaling=None)
        linear = built.decoder.layers[0].mlp.linear_fc2
        torch.nn.init.normal_(linear.weight)
        found = []
        for is_left_out in (False, True):
            x = torch.randn(5, 1, 48, generator=torch.Generator().manual_seed(1)).requires_grad_()
            linear.weight.grad = None
            with projection.result_left_out(linear if is_left_out else None):
                result, _ = linear(x)
            with torch.no_grad():
                is_product = torch.equal(result, x @ linear.weight.t())
            result.backward(torch.ones_like(result))
            found.append((x.grad, linear.weight.grad))
            assert is_product is not is_left_out
        assert "forward" not in vars(linear)
        own = linear.forward = functools.partial(linear.forward)  # somebody else's
        with projection.result_left_out(linear):
            assert linear.forward is not own
        assert vars(linear)["forward"] is own
        return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(("model", "fused"), [(MODEL, True), (MODEL, False), (NORMED, True)])
def test_the_products_of_a_layer_are_those_that_the_plan_counts(
    model: ModelConfig, fused: bool
) -> None:
    (counted,) = run_on_ranks(1, flop_of_two_layers, model, fused)
    config = PRETRAIN_RECIPES["llama3.1-8b-1m"]()
    config = dataclasses.replace(
        config,
        parallel=ONE,
        micro_batch_size=2,
        global_batch_size=2,
        data=dataclasses.replace(config.data, seq_length=SEQ_LENGTH),
    )
    planned = Job(model, config, 1, SEQ_LENGTH * (SEQ_LENGTH + 1) / 2)
    assert counted == 2 * layer_work(planned).products


class _Products(TorchDispatchMode):
    """Counts FLOP of matrix products, in backward passes inside of others too."""

    flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default:
            self.flop += 2 * args[0].numel() * args[1].shape[1]
        return func(*args, **(kwargs or {}))


def flop_of_two_layers(model: ModelConfig, fused: bool) -> float:
    """Run on every rank: FLOP of matrix products that two layers more take, one pass."""
    counts = []
    with parallel_groups(ONE, seed=1) as groups:
        for num_layers in (1, 3):
            with _Products() as counter:
                layer_values(
                    *(groups, ONE, Recomputation(tile_size=20, fused=fused)),
                    model=dataclasses.replace(model, num_layers=num_layers),
                )
            counts.append(counter.flop)
    return (counts[1] - counts[0]) / 2


def test_the_choice_says_why_and_what_is_asked_for_is_kept(monkeypatch) -> None:
    cpu = torch.device("cpu")
    choice = elementwise.choose("auto", torch.bfloat16, cpu)
    assert not choice.is_compiled
    assert str(choice).endswith("not compiled: they are for a GPU, not for cpu")
    assert "not compiled: --elementwise-kernel torch" in str(
        elementwise.choose("torch", torch.bfloat16, cpu)
    )
    with pytest.raises(
        InputError, match=r"compiled cannot be had .* use --elementwise-kernel auto"
    ):
        elementwise.choose("compiled", torch.bfloat16, cpu)
    monkeypatch.setattr(elementwise, "refusal", lambda *_: None)
    assert elementwise.choose("auto", torch.bfloat16, cpu).is_compiled
