"""Whether there is a Megatron-LM; it imports nothing that is slow."""

import importlib.util

from megatron_ultralong.program.errors import InputError


def check_megatron_lm() -> None:
    """Raise InputError where Megatron-Core comes without Megatron-LM, as wheels up to 0.16 do."""
    if importlib.util.find_spec("megatron.training") is None:
        raise InputError(
            "megatron.training is not in this environment, whose Megatron-Core comes without "
            "Megatron-LM: put the folder of your Megatron-LM first on PYTHONPATH, or take a "
            "megatron-core of 0.17 to 0.19 (Python 3.12 or newer): pip install -e '.[megatron-lm]' "
            "in a clone of this project; docs/dropin.md has more"
        )
