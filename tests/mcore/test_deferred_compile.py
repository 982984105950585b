"""Functions that Megatron-Core gives to ``torch.compile`` at import are compiled when called."""

import importlib
import subprocess
import sys

import pytest
import torch

from megatron_ultralong.cli.verbs import VERBS
from megatron_ultralong.mcore.deferred_compile import compile_at_first_call


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


def test_a_rank_starts_without_the_compiler() -> None:
    verbs = ("pretrain", "evaluate ruler")
    assert all(VERBS[verb].is_for_ranks for verb in verbs)
    program = (
        "import sys\n"
        "from megatron_ultralong.cli import dispatch\n"
        f"for verb in {verbs}:\n"
        "    dispatch._load_run(dispatch.VERBS[verb])\n"
        "    assert 'megatron.core' in sys.modules\n"
        "    print(verb, *({'torch._inductor', 'torch._dynamo'} & sys.modules.keys()))\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == list(verbs), run.stdout
