"""The sequence over the ranks of a context-parallel group: who holds what, and how it travels."""
