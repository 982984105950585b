"""Checkpoints of a run: writing, keeping, resuming."""
