"""Options of ``prepare`` and ``prepare chat``."""
