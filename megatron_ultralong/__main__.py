"""``python -m megatron_ultralong``: the same program as ``ultralong``."""

import signal

if __name__ == "__main__":
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no trace of a half-done import
    from megatron_ultralong.cli import main

    signal.signal(signal.SIGINT, before)
    main()
