"""A rank as torchrun starts it, by a new interpreter, imports no compiler."""

import subprocess
import sys

from megatron_ultralong.cli.verbs import VERBS


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
