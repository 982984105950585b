"""A cluster of this machine alone, with SLURM's commands, so that its scripts run for real."""
