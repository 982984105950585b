"""Messages of libraries, of which a run shows those that its user can act on, once.

``ULTRALONG_LOG=DEBUG`` or ``PYTHONWARNINGS`` shows all, on every rank.
"""

import logging
import os
import warnings

from megatron_ultralong.program.ranks import is_main_rank

_LEFT_OUT = (
    "GPTModel IS DEPRECATED",
    "load_common is deprecated",
    "DistributedDataParallel: full_param_layout not provided",
    "mkdir -p failed for path",
    "Matplotlib created a temporary cache directory",
)
"""Beginnings of what Megatron-Core 0.19 logs in every run: calls that only this program could
change, and that all supported versions have. The last two are matplotlib's, where the home folder
cannot be written to; pictures are drawn all the same.
"""


def leave_out(handler: logging.Handler) -> None:
    """Have the handler and the warnings of this process leave out what no user can act on.

    Megatron-Core warns at import, on every rank, that Apex and Transformer Engine are absent, has
    strings that Python warns of as it compiles them, and calls functions that torch has
    deprecated. flash-attn-4 warns of an argument of its own with every kernel that it compiles. Of
    the rest, the main rank speaks for all; errors come from every rank.
    """
    handler.addFilter(_is_shown)
    warnings.filterwarnings("ignore", module=r"megatron\.core|torch\.distributed")
    warnings.filterwarnings("ignore", module=r"megatron_ultralong\.mcore\.cpu")  # their calls
    warnings.filterwarnings("ignore", category=SyntaxWarning)
    warnings.filterwarnings("ignore", message="Argument aux_data ")
    if not is_main_rank():
        warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _is_shown(record: logging.LogRecord) -> bool:
    if record.name.startswith("megatron_ultralong") or record.levelno >= logging.ERROR:
        return True
    # Not its message: one that cannot be made is for logging to report, not to end a run.
    return is_main_rank() and not str(record.msg).startswith(_LEFT_OUT)
