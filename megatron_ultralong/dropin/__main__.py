"""Run a Megatron-LM script as it is, with our arguments known to it.

``torchrun ... -m megatron_ultralong.dropin pretrain_gpt.py --spec megatron_ultralong.spec
ring_te_spec --ultralong-rope-scaling yarn ...`` instead of ``torchrun ... pretrain_gpt.py ...``:
the script is not edited. On a machine without a GPU it runs on the CPU, over gloo.
"""

import runpy
import sys
from pathlib import Path

from megatron_ultralong.program.ending import ends_with_message
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.optional import check_megatron_lm


def main() -> None:
    """Run the script named by the first argument; it sees the others. ``--help``: list ours."""
    with ends_with_message():
        if sys.argv[1:2] in (["--help"], ["-h"]):
            from megatron_ultralong.dropin.arguments import own_parser

            sys.stdout.write(own_parser().format_help())
            return
        if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
            named = sys.argv[1] if len(sys.argv) > 1 else "nothing"
            raise InputError(
                f"the script to run comes first, and {named} is not a file: python -m "
                "megatron_ultralong.dropin pretrain_gpt.py --spec ...; --help lists arguments"
            )
        check_megatron_lm()
        sys.argv = sys.argv[1:]
        sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
        from megatron_ultralong.dropin.cpu import training_on_cpu

        with training_on_cpu():
            extend()
            from megatron_ultralong.dropin.checkpoints import checkpoints_are_vetted

            with checkpoints_are_vetted():  # the script's own parsing may read one
                runpy.run_path(sys.argv[0], run_name="__main__")


def extend() -> None:
    """Put the extended ``pretrain`` where scripts import it from."""
    import megatron.training
    from megatron.training import training

    from megatron_ultralong.dropin.entry import extended, register_arguments

    register_arguments()
    training.pretrain = megatron.training.pretrain = extended(training.pretrain)


if __name__ == "__main__":
    main()
