"""Functions that Megatron-Core gives to ``torch.compile`` at import are compiled when called."""

import importlib

import pytest
import torch

from megatron_ultralong.mcore.cpu import compile_at_first_call


def test_a_function_is_compiled_once_and_when_it_is_called() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    with compile_at_first_call():

        @torch.compile(backend=backend)
        def with_options(value: torch.Tensor) -> torch.Tensor:
            return value * 2 + 1

        direct = torch.compile(lambda value: value - 1, backend=backend)
    assert graphs == []
    value = torch.arange(4.0)
    for _ in range(2):
        torch.testing.assert_close(with_options(value), value * 2 + 1)
    assert len(graphs) == 1
    torch.testing.assert_close(direct(value), value - 1)
    assert len(graphs) == 2
    assert with_options.__name__ == "with_options"


def test_modules_are_compiled_at_once_and_torch_is_itself_again() -> None:
    before = torch.compile
    with compile_at_first_call():
        module = torch.compile(torch.nn.Linear(2, 2), backend="eager")
    assert isinstance(module, torch._dynamo.OptimizedModule)
    assert torch.compile is before
    with pytest.raises(ModuleNotFoundError), compile_at_first_call():
        importlib.import_module("no.such.module")
    assert torch.compile is before
