"""The training loop on Megatron-Core: optimizer, rows, checkpoints, log."""
