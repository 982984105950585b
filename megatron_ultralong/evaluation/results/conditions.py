"""Conditions under which figures were made: they stand beside every figure."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform

_PACKAGES = ("megatron-core", "torch", "transformers", "tokenizers", "numpy", "matplotlib")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide figures."""
    from megatron_ultralong import __version__

    found = {"megatron-ultralong": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional one: it had no part in the figures
    return found


def now() -> str:
    """The date and time in UTC, to the second: ``2026-01-31T12:00:00+00:00``."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
