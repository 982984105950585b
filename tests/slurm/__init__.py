"""A real SLURM of two nodes on this machine, and examples/slurm on it."""
