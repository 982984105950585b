"""Nothing of Megatron-LM is new: arguments, fields, and what the replaced attention reads."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from megatron.core.fusions import fused_softmax
from megatron.core.transformer import dot_product_attention
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_ultralong.dropin.arguments import ASKED, Asked, DropInConfig
from megatron_ultralong.dropin.known_arguments import KNOWN
from megatron_ultralong.dropin.rules import (
    RULES,
    Part,
    Rule,
    check_arguments,
    check_model_config,
    parts,
)
from megatron_ultralong.program.errors import InputError

HONOURED = {
    "apply_query_key_layer_scaling": "divides the scores, then multiplies them by the same",
    "attention_softmax_in_fp32": "ours always is",
    "bf16": "precision of the queries",
    "context_parallel_size": "the ring",
    "deterministic_mode": "sums in a fixed order",
    "fp16": "precision of the queries",
    "init_method": "of the learnable softmax, which is refused",
    "kv_channels": "size of a head",
    "masked_softmax_fusion": "which kernel",
    "num_attention_heads": "shape of the queries",
    "num_query_groups": "shape of the keys",
    "params_dtype": "of the learnable softmax, which is refused",
    "perform_initialization": "of the learnable softmax, which is refused",
    "sequence_parallel": "random states of dropout, which is refused",
    "tensor_model_parallel_size": "heads of this rank",
    "window_attn_skip_freq": "of windows, which are refused",
}
"""Fields that Megatron-Core's attention reads and no rule is for, and why they need none."""


def reads(module: Any) -> set[str]:
    """Fields of a configuration that a module's source reads."""
    return {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute)
        and (
            (isinstance(node.value, ast.Name) and node.value.id == "config")
            or (isinstance(node.value, ast.Attribute) and node.value.attr == "config")
        )
    }


def rules() -> list[tuple[Part, Rule]]:
    return [(part, rule) for part in RULES for rule in RULES[part]]


def test_every_field_that_the_replaced_attention_reads_is_honoured_or_ruled() -> None:
    found = reads(dot_product_attention) | reads(fused_softmax)
    assert found > {"window_size", "softmax_type"}
    assert found - {rule.name for rule in RULES["attention"]} <= set(HONOURED)


def test_every_field_of_the_configuration_is_known() -> None:
    assert {field.name for field in dataclasses.fields(TransformerConfig)} <= KNOWN


def test_every_argument_of_this_megatron_lm_is_known() -> None:
    if importlib.util.find_spec("megatron.training") is None:
        pytest.skip("the wheel of Megatron-Core 0.16 has no Megatron-LM")
    from megatron_ultralong.dropin.cpu import training_on_cpu

    with training_on_cpu():
        from megatron.training import arguments

        parser = arguments.add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    assert {action.dest for action in parser._actions} - {"help"} <= KNOWN


def test_every_rule_is_for_something_known() -> None:
    strangers = {rule.name for _, rule in rules()} - KNOWN
    # Of releases before 0.16 and after 0.19.
    assert strangers <= {"dynamic_context_parallel"}


@pytest.mark.parametrize(("part", "rule"), rules(), ids=lambda value: getattr(value, "name", value))
def test_a_rule_refuses_by_name(part: Part, rule: Rule) -> None:
    args = harmless()
    check_arguments(DropInConfig(), args, [part])
    setattr(args, rule.name, "something else")
    with pytest.raises(InputError, match=rule.name) as refusal:
        check_arguments(DropInConfig(), args, [part])
    assert "something else" in str(refusal.value)
    assert rule.reason in str(refusal.value)


def harmless() -> SimpleNamespace:
    """Arguments that every rule accepts."""
    values = {rule.name: rule.accepted[0] for _, rule in rules()}
    return SimpleNamespace(
        **{**values, "context_parallel_size": 1, "cp_comm_type": ["p2p"], "micro_batch_size": 1}
    )


def test_a_new_argument_is_refused_until_somebody_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--sparse-attention", type=int, default=0, dest="sparse_attention")
    ASKED.remember(parser)
    args = harmless()
    monkeypatch.setattr("sys.argv", ["script"])
    check_arguments(DropInConfig(), args, ["attention"])
    monkeypatch.setattr("sys.argv", ["script", "--sparse-attention", "0"])
    with pytest.raises(InputError, match="--sparse-attention is new"):
        check_arguments(DropInConfig(), args, ["attention"])
    check_arguments(DropInConfig(accept="sparse-attention"), args, ["attention"])


def test_a_new_field_is_refused_where_it_is_not_at_its_default() -> None:
    Newer = dataclasses.make_dataclass("Newer", [("sparse_attention", int, 0)])
    check_model_config(DropInConfig(), Newer(), ["attention"])
    with pytest.raises(InputError, match=r"Newer\.sparse_attention is 4"):
        check_model_config(DropInConfig(), Newer(4), ["attention"])


def test_what_was_given_is_told_from_defaults() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--rotary-base", type=int, default=10000)
    parser.add_argument("--no-fusion", action="store_false", dest="fusion")
    asked = Asked()
    asked.remember(parser)
    parser.add_argument("--of-the-script")
    assert asked.given(["--rotary-base", "10000", "--of-the-script", "1"]) == {"rotary_base"}
    assert asked.given(["--no-fusion"]) == {"fusion"}
    assert asked.flag("fusion") == "--no-fusion"
    assert parser.parse_args([]).rotary_base == 10000


def test_the_rotary_embedding_is_ours_where_it_computes_the_same() -> None:
    args = harmless()
    assert "rotary" in parts(DropInConfig(), args)
    args.rotary_percent = 0.5
    assert "rotary" not in parts(DropInConfig(), args)
    assert "rotary" in parts(DropInConfig(rope_scaling="yarn"), args)


def test_the_replaced_attention_of_transformer_engine_is_read_too() -> None:
    if importlib.util.find_spec("transformer_engine") is None:
        pytest.skip("no Transformer Engine")
    from megatron.core.extensions import transformer_engine

    found = reads(transformer_engine.TEDotProductAttention)
    assert found - {rule.name for rule in RULES["attention"]} <= set(HONOURED)
