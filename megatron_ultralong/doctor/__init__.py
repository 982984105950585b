"""What this machine has for a run, whether it works, and what to fix."""
