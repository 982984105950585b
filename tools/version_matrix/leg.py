"""Which versions are tested together, and by which tests."""

from __future__ import annotations

from dataclasses import dataclass

SUITE = ()
SELECTION = (
    "tests/mcore",
    "tests/generation",
    "tests/checkpoint",
    "tests/training/layouts",
    "tests/training/test_sft.py",
    "tests/dropin",
    "tests/test_config.py",
    "tests/test_cli.py",
    "tests/test_parser_messages.py",
    "tests/test_dry_run.py",
    "tests/test_doctor.py",
)
"""What meets Megatron-Core, torch's checkpoints and the command line."""


@dataclass(frozen=True)
class Leg:
    """One Python with one release of Megatron-Core."""

    python: str
    """3.12"""
    megatron_core: str
    """0.19.2"""
    tests: tuple[str, ...]
    """Files and folders for pytest; none is the whole suite."""

    @property
    def name(self) -> str:
        """The Python, then the release: ``3.12-0.19.2``."""
        return f"{self.python}-{self.megatron_core}"


LEGS = (
    Leg("3.11", "0.16.1", SUITE),
    Leg("3.12", "0.19.2", SUITE),
    Leg("3.12", "0.17.1", SELECTION),
    Leg("3.12", "0.18.2", SELECTION),
    Leg("3.10", "0.16.1", SELECTION),
    Leg("3.13", "0.19.2", SELECTION),
)
"""Megatron-Core needs Python 3.12 from 0.17 on."""
