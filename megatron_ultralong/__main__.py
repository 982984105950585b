"""``python -m megatron_ultralong``, ``ultralong`` and ``ultralong-lm-eval``: a quiet Ctrl-C.

The names of both commands stand here, for what they import takes seconds.
"""

import signal
from collections.abc import Callable


def _start(load: Callable[[], Callable[[], None]]) -> None:
    """Run what ``load`` imports; Ctrl-C before it is there shows no trace of a half-done import."""
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        run = load()
    except ModuleNotFoundError:
        from megatron_ultralong.program.ending import ends_with_message

        with ends_with_message():  # tells which package
            raise
    if is_usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def main() -> None:
    """``ultralong``."""

    def load() -> Callable[[], None]:
        from megatron_ultralong.cli import main

        return main

    _start(load)


def lm_eval() -> None:
    """``ultralong-lm-eval``."""

    def load() -> Callable[[], None]:
        from megatron_ultralong.evaluation.harness.plugin import main

        return main

    _start(load)


if __name__ == "__main__":
    main()
