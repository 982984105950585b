"""``python -m megatron_ultralong``: the same program as ``ultralong``."""

from megatron_ultralong.cli import main

if __name__ == "__main__":
    main()
