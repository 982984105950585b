"""What a run tells: log, phases, heartbeat, summary."""
