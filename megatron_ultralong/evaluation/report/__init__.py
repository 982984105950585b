"""Results of several checkpoints on one page."""
