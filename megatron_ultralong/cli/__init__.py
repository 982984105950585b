"""The command line: ``ultralong VERB ...``."""

from megatron_ultralong.cli.dispatch import main
from megatron_ultralong.cli.verbs import VERBS

__all__ = ["VERBS", "main"]
