"""The verbs ``prepare`` and ``prepare chat``."""
